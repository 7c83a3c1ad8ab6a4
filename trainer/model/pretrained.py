"""Loads a base model and its processor, and adds the embedding token to both."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor, AutoTokenizer

from schemas.errors import InputError
from schemas.os_errors import refused_by_system
from schemas.record import EMB_TOKEN
from schemas.training import ModelSettings
from trainer.model.vision_attention import batch_windows


def load_pretrained(base: str, settings: ModelSettings, *, weights: bool = True) -> tuple[Any, Any]:
    """(frozen model, processor). `weights=False`: shapes only, on the meta device. Raises InputError for a broken base."""
    source = {"revision": settings.revision, "trust_remote_code": settings.trust_remote_code}
    options = {"dtype": getattr(torch, settings.dtype), "attn_implementation": settings.attention}
    try:
        processor = AutoProcessor.from_pretrained(base, **source)
        if weights:
            model = AutoModelForImageTextToText.from_pretrained(base, **options, **source)
        else:
            options.pop("attn_implementation")  # nothing is run, so its package may be missing
            config = AutoConfig.from_pretrained(base, **source)
            with torch.device("meta"):
                model = AutoModelForImageTextToText.from_config(config, **options)
    except (OSError, ValueError, ImportError) as error:  # ImportError: an attention whose package is missing
        refused = refused_by_system(error)
        raise InputError(
            f"the model {base} cannot be loaded: {refused.cause if refused else error}",
            refused.remedy if refused else "name a directory or Hub repository with it",
        ) from error
    _check_takes_encoded_images(model, base)
    if settings.max_pixels is not None:
        _limit_pixels(processor.image_processor, settings.max_pixels)
    if settings.attention == "sdpa":
        batch_windows(model)
    model.requires_grad_(False)
    return model, processor


def _check_takes_encoded_images(model: Any, base: str) -> None:
    """Raises InputError for a model that would ignore `Embedder.states`' images, as transformers before 5.19 does."""
    if "mm_encoder_outputs" not in inspect.signature(getattr(model, "model", model).forward).parameters:
        raise InputError(
            f"the model {base}: {type(model).__name__} of transformers {transformers.__version__} does not take encoded images "
            "(mm_encoder_outputs), and would be trained without them",
            "install transformers 5.19 or newer, or name a base of the Qwen2.5-VL or Qwen3-VL family",
        )


def _limit_pixels(image_processor: Any, most: int) -> None:
    least = image_processor.size.get("shortest_edge", None) or most
    image_processor.size = {"shortest_edge": min(least, most), "longest_edge": most}


def add_emb_token(model: Any, tokenizer: Any) -> int:
    """Adds the embedding token unless it is there, and returns its id. The embedding matrix is never shrunk.

    The new row is initialised to the mean of all rows: the base has no preference for or against the token.
    """
    tokenizer.add_special_tokens({"extra_special_tokens": [EMB_TOKEN]}, replace_extra_special_tokens=False)
    emb_id: int = tokenizer.convert_tokens_to_ids(EMB_TOKEN)
    if emb_id is None or emb_id == tokenizer.unk_token_id:
        raise InputError(f"the tokenizer did not accept {EMB_TOKEN}", "use a tokenizer that can be extended")
    vocabulary = model.get_input_embeddings().weight.shape[0]
    mean_D = model.get_input_embeddings().weight.data.float().mean(0)
    mean_out_D = model.get_output_embeddings().weight.data.float().mean(0)
    if emb_id >= vocabulary:
        model.resize_token_embeddings(max(len(tokenizer), vocabulary), mean_resizing=False)
    with torch.no_grad():
        model.get_input_embeddings().weight[emb_id] = mean_D.to(model.dtype)
        if not model.config.tie_word_embeddings:
            model.get_output_embeddings().weight[emb_id] = mean_out_D.to(model.dtype)
    return emb_id


def check_emb_token(directory: Path, emb_id: int) -> None:
    """Raises InputError unless the embedding token has this id in the checkpoint: the adapter trained the row of that id."""
    try:
        trained_id = AutoTokenizer.from_pretrained(directory).get_vocab().get(EMB_TOKEN)
    except (OSError, ValueError) as error:
        refused = refused_by_system(error)
        raise InputError(
            f"the tokenizer in {directory} cannot be read: {refused.cause if refused else error}",
            refused.remedy if refused else "use another checkpoint of the run",
        ) from error
    if trained_id is None:
        raise InputError(f"the tokenizer in {directory} has no {EMB_TOKEN}", "it is no checkpoint of this trainer, or damaged")
    if trained_id != emb_id:
        raise InputError(
            f"{EMB_TOKEN} is token {trained_id} in {directory} and {emb_id} with its base",
            "the base's tokenizer has changed since: set model.revision to the one that was trained on",
        )
