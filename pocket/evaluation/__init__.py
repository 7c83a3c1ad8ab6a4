"""Measures the pocket checkpoints and a pocket build against the known truth."""
