"""Writes checkpoints in published layouts: Qwen2.5-VL-3B (tied), Qwen2.5-VL-7B (untied) and Qwen3-VL-8B (deepstack).

Real: vocabulary and its rows, chat template, files and their keys (as on the Hub, which are older than what transformers writes
today), head dimensions, rotary sections, patches, windows, pixels, means, and bfloat16 as the format of the weights. Reduced: width
and depth. Random: the weights.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, Final, Literal

import torch
from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedTokenizerFast

from bench.real_vocabulary import CACHE, CHAT_TEMPLATE, ROWS, real_tokenizer

Layout = Literal["qwen2.5-vl-3b", "qwen2.5-vl-7b", "qwen3-vl-8b"]
HEAD: Final = 128
"""Width of an attention head: the real one, so that the rotary sections are the real ones too."""
_CLIP: Final = {
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}
_TOKENS: Final = {
    "image_token_id": 151655,
    "video_token_id": 151656,
    "vision_start_token_id": 151652,
    "vision_end_token_id": 151653,
}
_GENERATION: Final = {"bos_token_id": 151643, "pad_token_id": 151643, "do_sample": True, "eos_token_id": [151645, 151643]}
_QWEN3_TEMPLATE: Final = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{% if message.content is string %}{{ message.content }}{% else %}"
    "{% for content in message.content %}{% if content.type == 'image' or 'image' in content or 'image_url' in content %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% elif content.type == 'video' or 'video' in content %}"
    "<|vision_start|><|video_pad|><|vision_end|>{% elif 'text' in content %}{{ content.text }}{% endif %}{% endfor %}{% endif %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""The published chat template, without tools."""


def write_checkpoint(layout: Layout, out: Path, *, heads: int = 2, vocabulary: Path = CACHE, seed: int = 0) -> Path:
    """Writes a checkpoint of width `heads` x 128 to `out`, unless it exists. Raises InputError without the vocabulary."""
    done = out / "written.json"
    facts = {"layout": layout, "heads": heads, "seed": seed}
    if done.is_file() and json.loads(done.read_text(encoding="utf-8")) == facts:
        return out
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    tokenizer = real_tokenizer(vocabulary)
    published = _qwen3(heads) if layout == "qwen3-vl-8b" else _qwen2_5(layout, heads)
    _write(out / "config.json", published)
    torch.manual_seed(seed)
    model = AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(out), dtype=torch.bfloat16)
    model.save_pretrained(out)
    _write(out / "config.json", published)  # instead of transformers' version of it
    _write_processor(layout, out, tokenizer)
    _write(done, facts)
    return out


def _qwen2_5(layout: Layout, heads: int) -> dict[str, Any]:
    """Returns Qwen2.5-VL's config.json as on the Hub: the language model's keys at the top, rotary sections in `rope_scaling`."""
    tied = layout == "qwen2.5-vl-3b"
    width = heads * HEAD
    return {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "attention_dropout": 0.0,
        "bos_token_id": 151643,
        "eos_token_id": 151645,
        **_TOKENS,
        "vision_token_id": 151654,
        "hidden_act": "silu",
        "hidden_size": width,
        "initializer_range": 0.02,
        "intermediate_size": 3 * width,
        "max_position_embeddings": 128000,
        "max_window_layers": 70 if tied else 28,
        "model_type": "qwen2_5_vl",
        "num_attention_heads": heads,
        "num_hidden_layers": 3,
        "num_key_value_heads": 1,
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0,
        "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
        "sliding_window": 32768,
        "tie_word_embeddings": tied,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.41.2",
        "use_cache": True,
        "use_sliding_window": False,
        "vision_config": {
            "depth": 4,  # of 32; as in the original, three windowed blocks to one that sees the whole image
            "fullatt_block_indexes": [1, 3],
            "hidden_act": "silu",
            "hidden_size": 160,
            "in_chans": 3,
            "intermediate_size": 428,
            "num_heads": 2,
            "out_hidden_size": width,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "spatial_patch_size": 14,
            "temporal_patch_size": 2,
            "tokens_per_second": 2,
            "window_size": 112,
        },
        "vocab_size": ROWS["3B" if tied else "7B"],
    }


def _qwen3(heads: int) -> dict[str, Any]:
    """Returns Qwen3-VL-8B's config.json as on the Hub."""
    width = heads * HEAD
    return {
        "architectures": ["Qwen3VLForConditionalGeneration"],
        **_TOKENS,
        "model_type": "qwen3_vl",
        "text_config": {
            "attention_bias": False,
            "attention_dropout": 0.0,
            "bos_token_id": 151643,
            "dtype": "bfloat16",
            "eos_token_id": 151645,
            "head_dim": HEAD,
            "hidden_act": "silu",
            "hidden_size": width,
            "initializer_range": 0.02,
            "intermediate_size": 3 * width,
            "max_position_embeddings": 262144,
            "model_type": "qwen3_vl_text",
            "num_attention_heads": heads,
            "num_hidden_layers": 4,
            "num_key_value_heads": 1,
            "rms_norm_eps": 1e-06,
            "rope_scaling": {"mrope_interleaved": True, "mrope_section": [24, 20, 20], "rope_type": "default"},
            "rope_theta": 5000000,
            "use_cache": True,
            "vocab_size": 151936,
        },
        "tie_word_embeddings": False,
        "transformers_version": "4.57.0.dev0",
        "vision_config": {
            "deepstack_visual_indexes": [1, 2, 3],  # of 27 blocks: 8, 16, 24
            "depth": 4,
            "hidden_act": "gelu_pytorch_tanh",
            "hidden_size": 144,
            "in_channels": 3,
            "initializer_range": 0.02,
            "intermediate_size": 538,
            "model_type": "qwen3_vl",
            "num_heads": 2,
            "num_position_embeddings": 2304,
            "out_hidden_size": width,
            "patch_size": 16,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
        },
    }


def _write_processor(layout: Layout, out: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """Writes the files that the Hub has beside the weights."""
    third = layout == "qwen3-vl-8b"
    template = _QWEN3_TEMPLATE if third else CHAT_TEMPLATE
    tokenizer.chat_template = template
    tokenizer.save_pretrained(out)
    settings: dict[str, Any] = {"patch_size": 14, "temporal_patch_size": 2, "merge_size": 2, **_CLIP}
    settings |= {"min_pixels": 3136, "max_pixels": 12845056}
    settings |= {"image_processor_type": "Qwen2VLImageProcessor", "processor_class": "Qwen2_5_VLProcessor"}
    generation: dict[str, Any] = _GENERATION | {"repetition_penalty": 1.05, "temperature": 0.000001}
    if third:
        size = {"longest_edge": 16777216, "shortest_edge": 65536}
        half = [0.5, 0.5, 0.5]
        settings = {
            "size": size,
            "patch_size": 16,
            "temporal_patch_size": 2,
            "merge_size": 2,
            "image_mean": half,
            "image_std": half,
        }
        settings |= {"processor_class": "Qwen3VLProcessor", "image_processor_type": "Qwen2VLImageProcessorFast"}
        video = settings | {
            "size": {"longest_edge": 25165824, "shortest_edge": 4096},
            "video_processor_type": "Qwen3VLVideoProcessor",
        }
        del video["image_processor_type"]
        _write(out / "video_preprocessor_config.json", video)
        generation = _GENERATION | {"top_k": 20, "top_p": 0.8, "temperature": 0.7, "repetition_penalty": 1.0}
    _write(out / "preprocessor_config.json", settings)
    _write(out / "chat_template.json", {"chat_template": template})
    _write(out / "generation_config.json", generation)


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
