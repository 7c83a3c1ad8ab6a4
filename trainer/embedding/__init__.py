"""Queries and candidates to vectors: adaptive embedding, pools, workers, files."""
