"""The rehearsal: runs the GPU configs through the real commands, on random checkpoints with real layouts.

    make rehearse                                  # on CPU
    make rehearse DEVICE=cuda                      # the same on a GPU
    python -m bench.rehearse --only train-7b       # one stage and the stages that it needs

`layouts` writes the checkpoints, `data` a small M-BEIR and a dataset; `stages` defines what is run, and `__main__` runs it.
"""
