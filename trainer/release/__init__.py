"""A run as a model that others load: merged weights and the files of a Hub repository."""
