"""The files that let `SentenceTransformer(DIR)` compute bypass embeddings, and the prompts for the model card's example.

Without them sentence-transformers takes the mean over all tokens. With them it appends the chat template's start of the reply
to each message, as `SequenceEncoder` does, takes the last state and normalises it. Prompts are passed as messages, because they
differ between queries and candidates and place the image; the example shows them.
"""

from __future__ import annotations

import json
import pprint
from pathlib import Path
from typing import Any, Final

from prompts import ImageSlot, Prompt, PromptSet
from schemas.record import EMB_TOKEN
from trainer.model.embedder import Embedder

_FORWARD: Final = {"method": "forward", "method_output_name": "last_hidden_state"}
_MODULES: Final = (
    ("", "sentence_transformers.base.modules.transformer.Transformer"),
    ("1_Pooling", "sentence_transformers.sentence_transformer.modules.pooling.Pooling"),
    ("2_Normalize", "sentence_transformers.base.modules.normalize.Normalize"),
)
_HOLES: Final = {"instruction": "\ue000", "text": "\ue001"}
"""Private-use characters in place of a prompt's variables."""


def write_modules(embedder: Embedder, directory: Path) -> None:
    """Writes modules.json and the files that it names, beside whole weights in `directory`."""
    template: dict[str, Any] = {"add_generation_prompt": True}
    if embedder.metadata.pool == "token":
        template["chat_template"] = (
            f"{embedder.processor.chat_template}{{% if add_generation_prompt %}}{EMB_TOKEN}{{% endif %}}"
        )
    dim = embedder.model.config.get_text_config().hidden_size
    files: dict[str, Any] = {
        "modules.json": [{"idx": i, "name": str(i), "path": path, "type": kind} for i, (path, kind) in enumerate(_MODULES)],
        "sentence_bert_config.json": {
            "transformer_task": "feature-extraction",
            "modality_config": {
                **dict.fromkeys(("text", "image"), _FORWARD),
                "message": {**_FORWARD, "format": "structured"},
            },
            "module_output_name": "token_embeddings",
            "processing_kwargs": {"chat_template": template},
        },
        "config_sentence_transformers.json": {
            "model_type": "SentenceTransformer",
            "prompts": {"query": "", "document": ""},
            "default_prompt_name": None,
            "similarity_fn_name": "cosine",
        },
        "1_Pooling/config.json": {"embedding_dimension": dim, "pooling_mode": "lasttoken", "include_prompt": True},
        "2_Normalize/config.json": {},
    }
    for name, content in files.items():
        (directory / name).parent.mkdir(exist_ok=True)
        (directory / name).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def prompts_as_source(name: str) -> str:
    """The student's prompts of a set as a Python literal: (kind, with picture) -> format strings; None is the picture."""
    prompts = PromptSet.load(name)
    by_kind: dict[tuple[str, bool], list[str | None]] = {}
    for picture in (False, True):
        query = prompts.render("student_query", instruction=_HOLES["instruction"], query_text=_HOLES["text"], has_image=picture)
        candidate = prompts.render("student_candidate", candidate_text=_HOLES["text"], has_image=picture)
        by_kind |= {("query", picture): _as_formats(query), ("candidate", picture): _as_formats(candidate)}
    return pprint.pformat(by_kind, width=120, sort_dicts=False)


def _as_formats(prompt: Prompt) -> list[str | None]:
    return [None if isinstance(part, ImageSlot) else _as_format(part) for part in prompt]


def _as_format(text: str) -> str:
    text = text.replace("{", "{{").replace("}", "}}")
    for name, hole in _HOLES.items():
        text = text.replace(hole, f"{{{name}}}")
    return text
