"""Trains the two pocket checkpoints from scratch."""
