"""M-BEIR's scores for a run and its controls."""
