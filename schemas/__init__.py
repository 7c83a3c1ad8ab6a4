"""Settings, rows and errors as pydantic models. Imports nothing of ours."""

__version__ = "0.1.0"
"""Of the whole project: what `mbeir-cot --version` says, every record's provenance holds, and pyproject.toml reads."""
