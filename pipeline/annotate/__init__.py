"""Takes each query through its steps (assess, route, reason, screen, verify), many at once, under Ray."""
