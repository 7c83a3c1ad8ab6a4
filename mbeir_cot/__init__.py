"""The command-line program. No other package imports it."""
