"""A training step of the 7B shape with random weights: seconds, MFU and memory on this machine's GPU.

    python -m bench.real_step --processor DIR [--layers 28] [--rows 256] [--chunk 32] [--no-checkpointing]

DIR holds the processor and tokenizer of Qwen2.5-VL. Its weights are not needed: the shape is given below, the values are random.
A step is the project's own `train_step` on random images and words: gradient cache, cross-entropy and contrastive loss in bfloat16.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from PIL import Image
from transformers import AutoProcessor, PreTrainedTokenizerBase, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from schemas.training import LoraSettings, LossSettings, ModelSettings
from trainer.data.batches import Batch
from trainer.data.process_group import ProcessGroup
from trainer.model.embedder import Embedder
from trainer.model.vision_attention import batch_windows
from trainer.training.cost import useful_flop
from trainer.training.step import train_step

TEXT = {"hidden_size": 3584, "intermediate_size": 18944, "num_attention_heads": 28, "num_key_value_heads": 4, "vocab_size": 152064,
        "rms_norm_eps": 1e-6, "tie_word_embeddings": False, "max_position_embeddings": 128000,
        "rope_parameters": {"rope_type": "default", "mrope_section": [16, 24, 24], "rope_theta": 1e6}}  # fmt: skip
VISION = {"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "out_hidden_size": 3584, "patch_size": 14,
          "spatial_merge_size": 2, "temporal_patch_size": 2, "window_size": 112, "fullatt_block_indexes": [7, 15, 23, 31]}  # fmt: skip
"""Qwen2.5-VL-7B's published shape."""
WORDS = [
    "the",
    "small",
    "dog",
    "on",
    "a",
    "red",
    "sofa",
    "near",
    "an",
    "open",
    "window",
    "in",
    "the",
    "evening",
    "light",
    "of",
    "a",
    "quiet",
    "room",
    "with",
    "two",
    "plants",
]


def build(tokenizer: PreTrainedTokenizerBase, layers: int, device: str) -> Qwen2_5_VLForConditionalGeneration:
    ids = {
        name: tokenizer.convert_tokens_to_ids(f"<|{name}|>")
        for name in ("image_pad", "video_pad", "vision_start", "vision_end")
    }
    config = Qwen2_5_VLConfig(
        text_config=TEXT | {"num_hidden_layers": layers}, vision_config=VISION, tie_word_embeddings=False,
        image_token_id=ids["image_pad"], video_token_id=ids["video_pad"],
        vision_start_token_id=ids["vision_start"], vision_end_token_id=ids["vision_end"],
    )  # fmt: skip
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(device):
            model = Qwen2_5_VLForConditionalGeneration._from_config(config, attn_implementation="sdpa")
    finally:
        torch.set_default_dtype(torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.02) if parameter.ndim > 1 else None
    return model.requires_grad_(False)


def draw_batch(embedder: Embedder, queries: int, chunk: int, trace_words: int = 120) -> Batch:
    """Makes a random batch: `queries` queries with image, text and trace, and as many candidates with image and text."""
    rng = np.random.default_rng(0)
    encoder = embedder.encoder()

    def words(count: int) -> str:
        return " ".join(rng.choice(WORDS, count))

    def picture() -> Image.Image:
        return Image.fromarray(rng.integers(0, 255, (256, 341, 3), dtype=np.uint8))

    ids = [f"q{i}" for i in range(queries)]
    dids = [f"c{i}" for i in range(queries)]
    asked = [
        encoder.encode_query(name, words(12), words(15), picture(), written=words(trace_words), labelled=True) for name in ids
    ]
    offered = [encoder.encode_candidate(name, words(20), picture()) for name in dids]
    chunks = encoder.make_chunks(asked, chunk, 10**9), encoder.make_chunks(offered, chunk, 10**9)
    return Batch(0, ids, chunks[0], chunks[1], dids, [frozenset([did]) for did in dids], queries, False)


def count_flops(model: torch.nn.Module, batch: Batch, *, checkpointing: bool) -> tuple[float, float, int, int]:
    """Returns (model FLOPs of a step, FLOPs including what gradient caching and checkpointing repeat, text tokens, patches).

    A forward pass takes two per weight and token. Frozen weights only need the gradient of their input (two more), and the vision
    tower has no backward pass. Attention, a few per cent at these lengths, is left out.
    """
    language = sum(p.numel() for n, p in model.named_parameters() if "language_model" in n and "embed_tokens" not in n)
    vision = sum(p.numel() for n, p in model.named_parameters() if ".visual." in n)
    tokens = sum(int(chunk.inputs["attention_mask"].sum()) for chunk in [*batch.queries, *batch.candidates])
    patches = sum(chunk.inputs["pixel_values"].shape[0] for chunk in [*batch.queries, *batch.candidates])
    useful = useful_flop(language, vision, tokens=tokens, patches=patches)
    again = 2 * language * tokens * (2 if checkpointing else 1) + 2 * vision * patches
    return useful, useful + again, tokens, patches


def _finish(device: str) -> None:
    """Waits for the device."""
    if device == "cuda":
        torch.cuda.synchronize()


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processor", type=Path, required=True)
    parser.add_argument("--layers", type=int, default=28)
    parser.add_argument("--rows", type=int, default=256, help="queries and candidates of this GPU's share of a step")
    parser.add_argument("--chunk", type=int, default=32)
    parser.add_argument("--no-checkpointing", action="store_true")
    parser.add_argument("--one-window-at-a-time", action="store_true", help="run the vision tower as transformers does")
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument(
        "--device", choices=["cuda", "cpu"], default="cuda", help="cpu: for a try with few layers; its figures mean nothing"
    )
    parser.add_argument("--tflops", type=float, default=989.0, help="the card's dense bfloat16 peak")
    chosen = parser.parse_args(arguments)
    on_gpu = chosen.device == "cuda"
    processor = AutoProcessor.from_pretrained(chosen.processor)
    model = build(processor.tokenizer, chosen.layers, chosen.device)
    settings = ModelSettings(
        base="random", lora=LoraSettings(r=128, alpha=256), dtype="bfloat16", autocast=True, attention="sdpa", train_projector=True,
        gradient_checkpointing=not chosen.no_checkpointing, max_pixels=501760,
    )  # fmt: skip
    with mock.patch("trainer.model.embedder.load_pretrained", return_value=(model, processor)):
        embedder = Embedder.create(settings, "full").to(chosen.device).train()
    if not chosen.one_window_at_a_time:
        batch_windows(embedder.model)
    batch = draw_batch(embedder, chosen.rows // 2, chosen.chunk)
    trained = [p for p in embedder.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=1e-5, fused=on_gpu)
    world, losses = ProcessGroup(0, 1, torch.device(chosen.device)), LossSettings()
    useful, executed, tokens, patches = count_flops(embedder.model, batch, checkpointing=not chosen.no_checkpointing)
    seconds = []
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    for _ in range(chosen.steps + 1):
        _finish(chosen.device)
        began = time.perf_counter()
        train_step(embedder, batch, losses, world)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        _finish(chosen.device)
        seconds.append(time.perf_counter() - began)
    took = min(seconds[1:])
    print(json.dumps({
        "gpu": torch.cuda.get_device_name() if on_gpu else "none", "layers": chosen.layers, "rows": chosen.rows, "chunk": chosen.chunk,
        "checkpointing": not chosen.no_checkpointing, "windows_batched": not chosen.one_window_at_a_time,
        "tokens": tokens, "patches": patches, "step_s": round(took, 3), "first_step_s": round(seconds[0], 3),
        "tokens_per_s": round(tokens / took), "mfu": round(useful / took / chosen.tflops / 1e12, 4),
        "hfu": round(executed / took / chosen.tflops / 1e12, 4), "peak_gib": round(torch.cuda.max_memory_allocated() / 2**30, 1) if on_gpu else None,
        "trained_m": round(sum(p.numel() for p in trained) / 1e6, 1),
    }))  # fmt: skip


if __name__ == "__main__":
    main()
