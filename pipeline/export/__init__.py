"""Exports a dataset in the formats of other training projects."""
