"""Annotates queries (assess, route, reason, screen, verify), many at once, under Ray."""
