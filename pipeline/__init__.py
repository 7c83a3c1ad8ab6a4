"""M-BEIR in, M-BEIR-CoT out. One module is one step."""
