"""Parts of a pocket checkpoint: a tokenizer, a tiny Qwen2.5-VL and its processor.

The sizes are chosen so that a 64x64 image is 16 visual tokens (patch 8, merge 2) and a checkpoint in bfloat16 stays well
below 15 MB. Everything else is Qwen2.5-VL's own code, so the checkpoints load with plain transformers and serve with vLLM.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Final

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
)

PAD: Final = "<|endoftext|>"
END: Final = "<|im_end|>"
SPECIAL_TOKENS: Final = (PAD, "<|im_start|>", END, "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
TAGS: Final = ("<reasoning>", "</reasoning>", "<answer>", "</answer>")
"""Tags with one token each. They are not special tokens, because the teacher writes them as text and the parser reads them."""

IMAGE_SIDE: Final = 64
"""Side in pixels of the square to which the processor resizes every image."""

CHAT_TEMPLATE: Final = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.content is string %}{{ m.content }}{% else %}{% for c in m.content %}"
    "{% if c.type in ('image', 'image_url') %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif 'text' in c %}{{ c.text }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""Qwen's ChatML, without its default system message."""


def build_tokenizer(corpus: Iterable[str], vocab_size: int = 1024) -> PreTrainedTokenizerFast:
    """Trains a byte-level BPE on `corpus`, so that any text has an encoding."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = [AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(TAGS), special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(corpus, trainer)
    bpe.add_tokens([AddedToken(tag, special=False, normalized=False) for tag in TAGS])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token=END, pad_token=PAD, extra_special_tokens=list(SPECIAL_TOKENS[3:]), model_max_length=1024
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def build_processor(tokenizer: PreTrainedTokenizerFast) -> Qwen2_5_VLProcessor:
    pixels = {"shortest_edge": IMAGE_SIDE**2, "longest_edge": IMAGE_SIDE**2}
    images = Qwen2VLImageProcessor(patch_size=8, merge_size=2, size=pixels, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    return Qwen2_5_VLProcessor(
        image_processor=images, tokenizer=tokenizer, video_processor=Qwen2VLVideoProcessor(), chat_template=CHAT_TEMPLATE
    )


def deepened(
    model: Qwen2_5_VLForConditionalGeneration, *, layers: int, intermediate: int
) -> Qwen2_5_VLForConditionalGeneration:
    """Returns a copy with more layers on top, which change nothing at first (their last products are zero).

    The MLPs are cut to the `intermediate` neurons with the largest weights, to stay below 6 M parameters.
    """
    config = copy.deepcopy(model.config)
    text, old = config.text_config, model.config.text_config.num_hidden_layers
    text.num_hidden_layers, text.intermediate_size = layers, intermediate
    text.layer_types = ["full_attention"] * layers
    grown = Qwen2_5_VLForConditionalGeneration(config)
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    for layer in range(old):
        names = [f"model.language_model.layers.{layer}.mlp.{name}_proj.weight" for name in ("gate", "up", "down")]
        gate, up, down = (weights[name] for name in names)
        kept = (gate.norm(dim=1) * up.norm(dim=1) * down.norm(dim=0)).topk(intermediate).indices.sort().values
        weights |= dict(zip(names, (gate[kept], up[kept], down[:, kept]), strict=True))
    for layer in grown.model.language_model.layers[old:]:
        nn.init.zeros_(layer.self_attn.o_proj.weight)
        nn.init.zeros_(layer.mlp.down_proj.weight)
    grown.load_state_dict(grown.state_dict() | weights)
    return grown


def build_model(
    tokenizer: PreTrainedTokenizerFast, *, hidden: int = 256, layers: int = 5, intermediate: int = 640
) -> Qwen2_5_VLForConditionalGeneration:
    """Returns a newly initialised model (float32). Seed torch first for a deterministic start."""
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in SPECIAL_TOKENS}
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": hidden,
            "intermediate_size": intermediate,
            "num_hidden_layers": layers,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 1024,
            # the sections sum to head_dim / 2
            "rope_parameters": {"rope_type": "default", "mrope_section": [12, 10, 10], "rope_theta": 10000.0},
            "tie_word_embeddings": True,
            "bos_token_id": None,
            "eos_token_id": ids[END],
            "pad_token_id": ids[PAD],
        },
        vision_config={
            "depth": 3,
            "hidden_size": 128,
            "intermediate_size": 256,
            "num_heads": 4,
            "patch_size": 8,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "window_size": 64,
            "fullatt_block_indexes": [0, 1, 2],
            "out_hidden_size": hidden,
            "in_channels": 3,
        },
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=True,
    )
    return Qwen2_5_VLForConditionalGeneration(config)
