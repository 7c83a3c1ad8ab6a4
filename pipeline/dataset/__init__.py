"""Annotated queries as files: Arrow schema, shards, manifest, data card, and a built dataset as later steps see it."""
