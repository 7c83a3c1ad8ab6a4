"""The files of a model repository on the Hub: a finished embedder and its card."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

from data_cards import render_trace_model_card
from pipeline.config import load_config
from pipeline.files.state import read_json
from pipeline.hub.push import PushError, Upload
from schemas.training import TrainConfig
from trainer.model.metadata import EmbedderMetadata
from trainer.release.sentence_transformers import prompts_as_source

FINAL: Final = ("README.md", "embedder.json")
_KNOWN: Final = frozenset(
    {"README.md", "adapter_config.json", "adapter_model.safetensors", "chat_template.jinja", "embedder.json"}
    | {"extras.safetensors", "finished.json", "processor_config.json", "tokenizer.json", "tokenizer_config.json"}
    | {"preprocessor_config.json", "special_tokens_map.json", "video_preprocessor_config.json", "vocab.json", "merges.txt"}
    | {"added_tokens.json"}
)
_NEVER: Final = frozenset({"README.md", "finished.json"})
"""PEFT's empty card, and the marker of a finished run."""


def render_card(config: TrainConfig, variant: str, metadata: EmbedderMetadata, repo: str, results: Path | None = None) -> str:
    """The model card. results: the file that `mbeir-cot eval` wrote, if it was run."""
    return render_trace_model_card(
        config,
        variant,
        metadata,
        read_json(results, "run `mbeir-cot eval` again") if results is not None and results.is_file() else [],
        repo=repo,
        synthetic=(config.data.mbeir.parent / "truth").is_dir(),
        prompts=prompts_as_source(metadata.prompts) if metadata.merged else "",
    )


def uploads(run: Path, variant: str, repo: str) -> list[Upload]:
    """What a run's variant consists of on the Hub. Raises PushError unless it is finished."""
    model = run / variant / "model"
    if not (model / "finished.json").is_file():
        raise PushError(f"{model} is missing or not finished", f"run `mbeir-cot train` first, with variant {variant}")
    config = load_config(run / "train.json", TrainConfig)
    results = run / "eval" / f"results_{config.evaluation.split}.json"
    card = render_card(config, variant, EmbedderMetadata.read(model), repo, results)
    return [
        *(_clean(path) for path in sorted(model.iterdir()) if path.is_file() and path.name not in _NEVER),
        Upload("README.md", card.encode()),
    ]


def belongs(path: str) -> bool:
    """Whether a file of the repository is one that `uploads` may write."""
    return path in _KNOWN


def _clean(path: Path) -> Upload:
    """Without paths of this machine: a base in a local directory is given by its last name."""
    if path.name not in ("embedder.json", "adapter_config.json"):
        return Upload(path.name, path)
    content = read_json(path)
    key = "base" if path.name == "embedder.json" else "base_model_name_or_path"
    if content.get(key) and Path(content[key]).is_absolute():
        content[key] = Path(content[key]).name
    return Upload(path.name, (json.dumps(content, indent=1) + "\n").encode())
