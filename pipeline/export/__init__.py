"""A dataset in the formats of projects that train on it."""
