"""The training run: step, checkpoints, self-generated traces, and how its processes are launched."""
