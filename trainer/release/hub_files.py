"""The files of a model repository: a finished embedder with its card."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

from data_cards import render_trace_model_card
from pipeline.hub.push import PushError, Upload
from schemas.training import TrainConfig
from trainer.model.embedder import Identity
from trainer.release.sentence_transformers import prompts_as_source

FINAL: Final = ("README.md", "embedder.json")
_KNOWN: Final = frozenset(
    {"README.md", "adapter_config.json", "adapter_model.safetensors", "chat_template.jinja", "embedder.json"}
    | {"extras.safetensors", "finished.json", "processor_config.json", "tokenizer.json", "tokenizer_config.json"}
    | {"preprocessor_config.json", "special_tokens_map.json", "video_preprocessor_config.json", "vocab.json", "merges.txt"}
    | {"added_tokens.json"}
)
_NEVER: Final = frozenset({"README.md", "finished.json"})
"""PEFT's own empty card, and our marker."""


def card_of(config: TrainConfig, variant: str, identity: Identity, repo: str, results: Path | None = None) -> str:
    """The model card. results: the scores that `mbeir-cot eval` wrote, where it has run."""
    return render_trace_model_card(
        config,
        variant,
        identity,
        json.loads(results.read_text(encoding="utf-8")) if results is not None and results.is_file() else [],
        repo=repo,
        synthetic=(config.data.mbeir.parent / "truth").is_dir(),
        prompts=prompts_as_source(identity.prompts) if identity.merged else "",
    )


def uploads(run: Path, variant: str, repo: str) -> list[Upload]:
    """Raises PushError for a run that is not finished."""
    model = run / variant / "model"
    if not (model / "finished.json").is_file():
        raise PushError(f"{model} is not there or not finished", f"fit it first: `mbeir-cot train`, variant {variant}")
    config = TrainConfig.model_validate_json((run / "train.json").read_bytes())
    results = run / "eval" / f"results_{config.evaluation.split}.json"
    card = card_of(config, variant, Identity.read(model), repo, results)
    return [
        *(_cleaned(path) for path in sorted(model.iterdir()) if path.is_file() and path.name not in _NEVER),
        Upload("README.md", card.encode()),
    ]


def belongs(path: str) -> bool:
    return path in _KNOWN


def _cleaned(path: Path) -> Upload:
    """The base by its last name where it is a directory of this machine."""
    if path.name not in ("embedder.json", "adapter_config.json"):
        return Upload(path.name, path)
    found = json.loads(path.read_text(encoding="utf-8"))
    key = "base" if path.name == "embedder.json" else "base_model_name_or_path"
    if found.get(key) and Path(found[key]).is_absolute():
        found[key] = Path(found[key]).name
    return Upload(path.name, (json.dumps(found, indent=1) + "\n").encode())
