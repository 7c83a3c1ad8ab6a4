"""Cost of the paper's scale on 8 GPUs with 80 GB: the table of docs/at-scale.md, by arithmetic that can be read and changed.

    python -m bench.cost [--card h100]

Nothing is run. Every figure states its origin:

* counted: from the released sizes of M-BEIR and M-BEIR-CoT, the models' published shapes, and the prompts of `prompts/full` in
  Qwen2.5's tokens;
* measured: by us, in `MEASURED`, with the name of the card: a training step on one GPU;
* estimated: by the formulae here, at the shares of a card's peak in `ASSUMED`. Replace these by measurements.

Rows consist of text and image tokens; N is the number of parameters of the language model without its embedding. A forward pass
costs 2 N FLOP per token; attention (0.5% at 300 tokens) is left out, and the vision tower is counted by patches.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated, Literal

import typer

from bench.shapes import CARDS, QWEN_7B, QWEN_72B, Card, Shape
from trainer.training.cost import MEASURED_EXECUTED, MEASURED_ON, MEASURED_SHARE, train_memory, useful_flop

GB, HOUR = 1e9, 3600


@dataclass(frozen=True, slots=True)
class Data:
    """Sizes of the data; counted unless marked otherwise."""

    queries: int = 1_150_000  # M-BEIR's training queries, all dataset-tasks (its paper rounds)
    query_images: float = 877 / 1150
    train_rows: int = 575_442 + 518_311  # sizes of M-BEIR-CoT in the paper
    traces: int = 575_442
    reasoned: int = 633_000  # CIRR, FashionIQ, InfoSeek, OVEN: asked for a trace
    reasoned_target_images: float = 342 / 633  # a verification shows them beside the query's image
    positive_images: float = 615 / 1150
    positive_passages: float = 591 / 1150  # Wikipedia: OVEN and InfoSeek
    test_queries: int = 190_573
    test_query_images: float = 135_843 / 190_573
    candidates: int = 5_609_079
    candidate_images: float = 3_152_220 / 5_609_079
    candidate_passages: float = 2_105_235 / 5_609_079
    image: int = 110  # visual tokens of 341x256 and their two delimiters
    chat: int = 22  # the chat template's own tokens
    student_query: int = 116
    student_candidate: int = 27
    assess: int = 36  # beyond the constant part, which vLLM's prefix cache holds; the same for the next two
    reason: int = 45
    verify: int = 195
    trace: int = 130  # assumed: worked examples have 62 to 107, the paper's bounds are 18 and 320
    passage: int = 130  # assumed
    caption: int = 15  # assumed

    def candidate_tokens(self, images: float, passages: float) -> float:
        text = passages * self.passage + (1 - passages) * self.caption
        return self.chat + self.student_candidate + text + images * self.image


@dataclass(frozen=True, slots=True)
class Assumed:
    """Assumptions, which we have not measured."""

    flop_share: float = 0.4
    """Share of the bf16 peak in the teacher's prefill."""
    byte_share: float = 0.6
    """Share of the memory bandwidth in decoding."""
    attempts: float = 1.3
    """Traces requested per query that reasons (repair.attempts limits it to 3)."""
    think_rate: float = 0.5
    """Share of test queries for which TRACE writes a trace."""


@dataclass(frozen=True, slots=True)
class Measured:
    """Measurements on one GPU, with its name. None: not measured, so the assumption is used."""

    on: str = MEASURED_ON
    train_share: dict[bool, float] = field(default_factory=lambda: dict(MEASURED_SHARE))
    """Useful FLOP/s of a training step over the bf16 peak, with (True) and without checkpointing."""
    embed_share: float | None = MEASURED_EXECUTED
    """Share of the peak when embedding candidates. Not measured itself: the same forward pass at a training step's executed share."""
    decode_7b: float | None = None
    """Tokens/s when vLLM decodes 256 rows of adaptive embedding."""


ALTERNATIVES = ("with checkpointing", "queries, traces, `adaptive.engine: transformers`")
"""Rows that are not part of their sums."""
DATA, ASSUMED = Data(), Assumed()
MEASURED = Measured()


@dataclass(frozen=True, slots=True)
class Line:
    """A row of the table."""

    what: str
    memory: str
    rate: str
    hours: float | None
    """Hours on 8 GPUs."""
    how: str


def train_tokens(data: Data = DATA, *, traces: bool) -> float:
    """Tokens of a training row: the query, its trace if it has one, and its positive."""
    query = data.chat + data.student_query + data.query_images * data.image
    thought = data.trace * data.traces / data.train_rows if traces else 0.0
    return query + thought + data.candidate_tokens(data.positive_images, data.positive_passages)


def train_patches(data: Data = DATA) -> float:
    """Patches of the images of a training row."""
    return 4 * data.image * (data.query_images + data.positive_images)


def step_s(
    shape: Shape, card: Card, rows: int, *, traces: bool, data: Data = DATA, r: int = 128, checkpointing: bool = True
) -> float:
    """Seconds of a step of `rows` rows on one GPU."""
    language = shape.layer_parameters + shape.lora_parameters(r)
    vision = shape.vision_parameters + shape.merger_parameters
    tokens, patches = rows * train_tokens(data, traces=traces), rows * train_patches(data)
    return useful_flop(language, vision, tokens=tokens, patches=patches) / (card.bf16 * MEASURED.train_share[checkpointing])


def memory_of(shape: Shape, *, chunk: int, r: int = 128, checkpointing: bool = True, tokens_row: float = 272) -> float:
    """Bytes on a GPU (`trainer.training.cost`)."""
    return train_memory(
        2 * shape.parameters, shape.lora_parameters(r), tokens=chunk * tokens_row, checkpointing=checkpointing,
        hidden=shape.hidden, layers=shape.layers, words=shape.vocabulary,
    )  # fmt: skip


def decode_s(shape: Shape, card: Card, *, rows: int, context: float, gpus: int = 1, kv_passes: float = 1) -> float:
    """Seconds to decode one token for each of `rows`: reads all weights and every row's keys and values, then multiplies, without overlap.

    kv_passes: 1 if attention reads the cache in place. transformers' DynamicCache with a mask copies it (2), repeats it for every
    query head (7 written, 7 read) and reads it once: 17.
    """
    weights = 2 * (shape.layer_parameters + shape.vocabulary_parameters)
    moved = weights + kv_passes * rows * context * shape.kv_bytes
    return moved / (gpus * card.bandwidth * ASSUMED.byte_share) + rows * weights / (gpus * card.bf16 * ASSUMED.flop_share)


def share_of(measured: float | None) -> tuple[float, str]:
    """Returns a share of the peak and its origin."""
    if measured is not None:
        return measured, f"at {measured:.0%} of the peak, which a training step executes, measured on one {MEASURED.on}"
    return ASSUMED.flop_share, f"at {ASSUMED.flop_share:.0%} of the peak, assumed"


def build_lines(card: Card, data: Data = DATA) -> Iterator[Line]:
    """Rows for a build with two servers of Qwen2.5-VL-72B, on four GPUs each."""
    shape, gpus = QWEN_72B, 8
    room = 4 * card.memory * 0.92 - 2 * shape.parameters - 4 * 4e9
    yield Line(
        "teacher, weights and KV cache",
        f"{2 * shape.parameters / 4 / GB:.0f} GB + {room / 4 / GB:.0f} GB a GPU",
        f"{room / shape.kv_bytes / 1e3:.0f} k tokens of KV a server",
        None,
        "counted; 4 GB a GPU for activations and graphs assumed",
    )
    flop_s = gpus * card.bf16 * ASSUMED.flop_share
    asked = data.reasoned * ASSUMED.attempts
    shown = 1 + data.reasoned_target_images
    kinds = (
        ("assessments", data.queries, data.assess + data.chat + data.query_images * data.image, data.query_images),
        ("traces, prefill", asked, data.reason + data.chat + data.image, 1.0),
        ("verifications", asked, data.verify + data.chat + shown * data.image, shown),
    )
    for name, calls, tokens, images in kinds:
        flop = calls * (tokens * 2 * shape.layer_parameters + images * shape.image_flop(data.image))
        seconds = flop / flop_s
        how = f"{calls / 1e6:.2f} M calls of {tokens:.0f} tokens beyond the cached prefix; estimated {share_of(None)[1]}"
        yield Line(name, "", f"{calls * tokens / seconds / 1e3:.1f} k tokens/s", seconds / HOUR, how)
    step = decode_s(shape, card, rows=256, context=500 + data.image + data.trace / 2, gpus=4)
    rate = 2 * 256 / step
    how = f"{asked * data.trace / 1e6:.0f} M tokens; 256 sequences a server, {step * 1e3:.0f} ms a step, estimated"
    yield Line("traces, decoding", "", f"{rate / 1e3:.1f} k tokens/s", asked * data.trace / rate / HOUR, how)


def train_lines(card: Card, data: Data = DATA) -> Iterator[Line]:
    """Rows for training with configs/train-trace-7b.yaml."""
    shape, gpus, rows = QWEN_7B, 8, 1024
    steps = -(-data.train_rows // rows)
    for name, traces, checkpointing in (("trace", True, False), ("direct", False, False), ("with checkpointing", True, True)):
        seconds = step_s(shape, card, rows, traces=traces, data=data, checkpointing=checkpointing) / gpus
        tokens = rows * train_tokens(data, traces=traces)
        memory = memory_of(shape, chunk=32 if checkpointing else 16, checkpointing=checkpointing)
        chunk = "chunk 32" if checkpointing else "chunk 16"
        yield Line(
            name if checkpointing else f"`{name}`, an epoch of {steps:,} steps",
            f"{memory / GB:.0f} GB a GPU, {chunk}" if traces else "",
            f"{tokens / seconds / 1e3:.0f} k tokens/s",
            steps * seconds / HOUR,
            f"{tokens / 1e3:.0f} k tokens and {seconds:.1f} s a step; useful FLOP at {MEASURED.train_share[checkpointing]:.1%} of the "
            f"peak, measured on one {MEASURED.on}; several GPUs estimated as a multiple of one",
        )


def evaluation_lines(card: Card, data: Data = DATA) -> Iterator[Line]:
    """Rows for the evaluation of one model on all pools and their union: candidates once, queries by their route."""
    shape, gpus = QWEN_7B, 8
    share, how = share_of(MEASURED.embed_share)
    flop_s = gpus * card.bf16 * share
    tokens = data.candidate_tokens(data.candidate_images, data.candidate_passages)
    flop = data.candidates * (tokens * 2 * shape.layer_parameters + data.candidate_images * shape.image_flop(data.image))
    yield Line(
        "candidates (`index` of the global pool: these alone)",
        f"{2 * shape.parameters / GB:.0f} GB a GPU + activations",
        f"{data.candidates * tokens / (flop / flop_s) / 1e3:.0f} k tokens/s",
        flop / flop_s / HOUR,
        f"5.6 M of {tokens:.0f} tokens, vectors {data.candidates * shape.hidden * 2 / GB:.0f} GB on disk; estimated {how}",
    )
    tokens = data.chat + data.student_query + data.test_query_images * data.image
    flop = data.test_queries * (tokens * 2 * shape.layer_parameters + data.test_query_images * shape.image_flop(data.image))
    yield Line(
        "queries, prompts",
        "",
        f"{data.test_queries * tokens / (flop / flop_s) / 1e3:.0f} k tokens/s",
        flop / flop_s / HOUR,
        how,
    )
    thought = data.test_queries * ASSUMED.think_rate * data.trace
    context = tokens + data.trace / 2
    memory = f"{(2 * shape.parameters + 256 * context * shape.kv_bytes) / GB:.0f} GB a GPU"
    tokens_written = f"{thought / 1e6:.0f} M tokens (think rate {ASSUMED.think_rate} assumed)"
    for engine, passes, cache in (("vllm", 1, "in place"), ("transformers", 17, "copied at every token")):
        rate = 256 / decode_s(shape, card, rows=256, context=context, kv_passes=passes)
        how = f"256 sequences a GPU, {256 / rate * 1e3:.0f} ms a step, the cache {cache}; estimated"
        if engine == "vllm" and MEASURED.decode_7b is not None:
            rate, how = MEASURED.decode_7b, f"256 sequences a GPU, measured on one {MEASURED.on}"
        yield Line(
            f"queries, traces, `adaptive.engine: {engine}`",
            memory,
            f"{gpus * rate / 1e3:.0f} k tokens/s",
            thought / (gpus * rate) / HOUR,
            f"{tokens_written}; {how}" if engine == "vllm" else f"instead of vLLM; {how}",
        )
    flop = 2.0 * data.test_queries * data.candidates * shape.hidden
    yield Line(
        "exact search, union pool",
        "a block at a time",
        "",
        flop / (gpus * card.fp32 * ASSUMED.flop_share) / HOUR,
        f"{flop:.1e} FLOP in float32 on GPUs; on CPU {flop / 90e9 / HOUR:.0f} core-hours (measured: 90 GFLOP/s a core)",
    )


def _hours(hours: float) -> str:
    return f"{hours:.1f}" if hours >= 0.95 else f"{hours:.2f}"


def table(card: Card) -> str:
    """Renders the table in Markdown, with a sum for each part."""
    lines = ["| | memory | tokens/s, all GPUs | hours | GPU-hours | how |", "|---|---|---|--:|--:|---|"]
    for title, part in (
        ("build, two servers of a 72B teacher", build_lines(card)),
        ("training, 7B", train_lines(card)),
        ("evaluation of one model", evaluation_lines(card)),
    ):
        rows = list(part)
        counted = [row for row in rows if row.what not in ALTERNATIVES]
        total = sum(row.hours or 0 for row in counted)
        lines.append(f"| **{title}** | | | **{_hours(total)}** | **{8 * total:.0f}** | |")
        for row in rows:
            hours = ("", "") if row.hours is None else (_hours(row.hours), f"{8 * row.hours:.1f}")
            lines.append(f"| {row.what} | {row.memory} | {row.rate} | {hours[0]} | {hours[1]} | {row.how} |")
    return "\n".join(lines)


def main(card: Annotated[Literal["h100", "a100", "h200"], typer.Option()] = "h100") -> None:
    """Prints the table for eight GPUs of one kind."""
    print(table(CARDS[card]))


if __name__ == "__main__":
    typer.run(main)
