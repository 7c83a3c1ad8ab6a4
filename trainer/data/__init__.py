"""A built dataset and an M-BEIR root as batches of model inputs."""
