"""How good the pocket checkpoints and a pocket build are, against the known truth."""
