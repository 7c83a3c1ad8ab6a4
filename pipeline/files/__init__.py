"""Files that survive a power cut, and directories that are replaced whole."""
