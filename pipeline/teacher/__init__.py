"""Requests to a teacher: their content, the client, and the client that caches in the ledger. `pipeline.serving` hosts it."""
