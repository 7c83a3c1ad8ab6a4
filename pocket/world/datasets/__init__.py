"""The ten datasets of the pocket world."""
