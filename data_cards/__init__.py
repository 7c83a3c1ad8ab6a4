"""Cards (README.md) of datasets and models: templates, and `render`."""

from __future__ import annotations

from data_cards.render import render_dataset_card, render_pocket_model_card, render_trace_model_card

__all__ = ["render_dataset_card", "render_pocket_model_card", "render_trace_model_card"]
