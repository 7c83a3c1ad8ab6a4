"""Prompts and traces as pure functions: task families, prompting, grammar, parser."""
