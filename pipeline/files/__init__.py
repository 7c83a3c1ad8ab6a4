"""Durable files, and directories that are replaced in one step."""
