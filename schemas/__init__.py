"""Settings, rows and errors as pydantic models. Imports no other package of the project."""

__version__ = "0.1.0"
"""Of the whole project: what `mbeir-cot --version` says, every record's provenance holds, and pyproject.toml reads."""
