"""The rehearsal: what is shipped for GPUs, run by its own commands on checkpoints that are real in everything but size.

    make rehearse                                  # on CPU
    make rehearse DEVICE=cuda                      # the same on a GPU
    python -m bench.rehearse --only train-7b       # one stage, and what it needs

`layouts` writes the checkpoints, `data` a small M-BEIR and a dataset, `stages` says what is run, `__main__` runs it.
"""
