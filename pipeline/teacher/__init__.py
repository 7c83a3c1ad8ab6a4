"""Asking a teacher: requests, the client, and the client that asks through the ledger. Hosting it is `pipeline.serving`."""
