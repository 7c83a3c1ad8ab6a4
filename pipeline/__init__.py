"""M-BEIR in, M-BEIR-CoT out. One module is one step."""

__version__ = "0.1.0"
