"""Exact top-k search and the index on disk."""
