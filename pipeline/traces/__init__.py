"""What is said to a teacher and what it may answer: task families, prompts, grammar, parser. Pure functions."""
