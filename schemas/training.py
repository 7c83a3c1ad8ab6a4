"""Settings of TRACE's training, embedding and evaluation: what ``configs/train-*.yaml`` hold.

Long because it is the reference of one file's keys."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from schemas.mbeir import DatasetTask, EvaluationSplit

Variant = Literal["trace", "direct", "always-reason"]
Pooling = Literal["pre", "token", "mean"]
Autocast = bool | Literal["auto"]
Traces = Literal["teacher", "own", "mixed"]
Engine = Literal["transformers", "vllm"]
RouteChoice = Literal["learned", "always-direct", "always-reason", "given"]

LANGUAGE_MODEL_LINEARS = r".*language_model\.layers\.\d+\.(self_attn\.(q|k|v|o)_proj|mlp\.(gate|up|down)_proj)"
"""Matched by full name: a list of suffixes would also match the vision tower's MLP."""


class _Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class LoraSettings(_Settings):
    """Paper: r 128, alpha 256, on the language model. Dropout is not given there."""

    r: PositiveInt = 128
    alpha: PositiveFloat = 256
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    targets: str = LANGUAGE_MODEL_LINEARS
    """A regular expression on full module names."""


class ModelSettings(_Settings):
    """The model that is trained."""

    base: str
    """A directory or Hub repository: any Qwen2.5-VL or Qwen3-VL."""
    revision: str | None = None
    pooling: Pooling = "pre"
    """`pre`: the state before the embedding token, which predicts it (paper: 57.0 against 52.3 on CIRR). `token`: its own.
    `mean`: the mean over all tokens of the sequence, for the variant `direct`."""
    bidirectional_attention: bool = False
    """Every token of the language model attends to all others, for the variant `direct`, usually with `pooling: mean` (LLM2Vec,
    arXiv 2404.05961; NV-Embed, arXiv 2405.17428; U-MARVEL). Such a model writes no trace, and vLLM cannot serve it."""
    lora: LoraSettings = LoraSettings()
    trained_rows: Literal["emb", "all"] = "emb"
    """Rows of the embedding matrix that are trained: the embedding token's, or all, for a base that has never seen some words
    of the traces (such as the pocket base)."""
    train_projector: bool = False
    """Train the merger between vision tower and language model too (the paper's figure shows it trainable)."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the frozen weights. Trained weights are kept in float32."""
    autocast: Autocast = False
    """Compute matrix products in bfloat16. `auto`: if the hardware supports it, as GPUs and some CPUs do."""
    attention: Literal["eager", "sdpa", "flash_attention_2"] = "sdpa"
    gradient_checkpointing: bool = False
    max_pixels: PositiveInt | None = None
    """Larger images are reduced by the processor [default: the checkpoint's own limit]."""
    trust_remote_code: bool = False

    @property
    def writes(self) -> bool:
        """Whether the model can write traces."""
        return self.pooling != "mean" and not self.bidirectional_attention


class DataSettings(_Settings):
    """What the model is trained on."""

    dataset: str
    """A dataset that `mbeir-cot build` wrote: its directory, or a Hub repository."""
    always_reason_dataset: str | None = None
    """The same queries built with every query reasoning (`route.threshold=0`): what `always-reason` learns from."""
    mbeir: Path
    """The M-BEIR root: candidates and images."""
    image_roots: tuple[Path, ...] = ()
    """Further directories that symbolic links below the M-BEIR root may lead into; those of the build whose directory
    `dataset` is are added."""
    candidate_cache: Path | None = None
    """Where converted candidate pools are kept [default: $MBEIR_COT_CACHE, or the user's cache directory]."""
    prompts: str = "full"
    """The prompt set with student_query and student_candidate."""
    max_candidate_chars: PositiveInt = 2400
    """Longer candidate texts are cut (LamRA: 480 tokens)."""
    hard_negatives: NonNegativeInt | Literal["mined"] = 0
    """Listed negatives added per query; or `mined`: those of `mined` instead."""
    mined: Path | None = None
    """For `hard_negatives: mined`: the file that `mbeir-cot mine` wrote."""
    mined_per_query: PositiveInt = 1
    """Mined negatives added per query, drawn anew each epoch."""
    upsample: bool = False
    """Repeat records as often as the up-sampled union file does (`multiplicity`)."""
    hold_out: tuple[str, ...] = ()
    """Dataset-tasks (such as nights_task4) whose rows are left out of training. `eval` scores them in a group of their own."""
    skip_unreadable: bool = False
    """In training, evaluation and index, leave out items whose image cannot be read (missing, damaged, of a shape that the
    processor refuses), count and list them; otherwise the first one is an error. A query that is left out of an evaluation
    counts as a miss. Training checks all images before its first step."""
    most_unreadable: Annotated[float, Field(gt=0, le=1)] = 0.5
    """With `skip_unreadable`: more than this share of a training's records, of a pool's candidates, or of the queries of `mine`
    and `utility` is not left out: that is an error, for so much is a disk that is not mounted."""
    workers: NonNegativeInt = 1
    """Processes that read and prepare batches. They do not change the order."""
    prefetch: PositiveInt = 2
    """Batches that each worker keeps ready in /dev/shm. A run that would fill it is refused at its start."""

    @property
    def negatives_per_query(self) -> int:
        """Hard negatives added per query, of either kind."""
        return self.hard_negatives if isinstance(self.hard_negatives, int) else self.mined_per_query

    @model_validator(mode="after")
    def _mined(self) -> Self:
        if self.hard_negatives == "mined" and self.mined is None:
            raise ValueError("data.hard_negatives: mined needs data.mined, the file that `mbeir-cot mine RUN` wrote")
        return self

    @field_validator("hold_out")
    @classmethod
    def _known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            DatasetTask.parse(name)
        return tuple(sorted(set(names)))


class BatchSettings(_Settings):
    global_batch_size: PositiveInt = 1024
    """Queries in a step, over all processes."""
    micro_batch_size: PositiveInt | Literal["auto"] = 16
    """Sequences (queries and candidates) whose activations are held at once. This decides the memory; `global_batch_size` does
    not. `auto`: as many as fit into `memory_share` of the GPU, found at the start with long sequences of the data and kept when
    the run is resumed; 16 on CPU."""
    memory_share: Annotated[float, Field(gt=0, le=1)] = 0.85
    """Share of a GPU's memory for `micro_batch_size: auto`. The rest is for fragmentation, longer sequences and other
    libraries."""
    forward_batch_size: PositiveInt | None = None
    """Sequences in a forward pass [default: `micro_batch_size`]. Fewer sequences need less padding."""
    micro_batch_patches: PositiveInt = 65_536
    """Most image patches in a forward pass (a single sequence may have more)."""
    vision_cache_gib: NonNegativeFloat = 4.0
    """GiB of a device for the vision tower's output, kept from the first pass of a step to the second: the tower is frozen, so
    it does not change. A 341x256 picture takes 1.1 MB with a 7B; what does not fit is computed again."""
    sampling: Literal["mixed", "by-task"] = "mixed"
    """`by-task`: all queries of a batch are of one dataset-task, so its negatives are of one kind."""
    balance: Annotated[float, Field(ge=0, le=1)] = 1.0
    """Dataset-tasks are drawn in proportion to size ** balance: 1 by size, 0 all equally often."""


class LossSettings(_Settings):
    """L = generation * (CE + route * CE of the first token) + retrieval * InfoNCE + distillation * KL."""

    generation_weight: NonNegativeFloat = 1.0
    retrieval_weight: NonNegativeFloat = 1.0
    route_weight: NonNegativeFloat = 0.0
    """Extra weight of the first token's CE. In the mean over a trace of n tokens the first token, which decides the route, has
    1/n of the weight that it has in a bypass. 0 is the paper's loss."""
    temperature: PositiveFloat = 0.02
    """The paper gives none; 0.02 is its authors' later choice."""
    learn_temperature: bool = False
    bidirectional: bool = False
    """Add the loss from candidates to queries."""
    distillation_weight: NonNegativeFloat = 0.0
    """Weight of a further loss, for mined negatives that a verifier judged (`mine --verifier`): the KL divergence from its
    distribution over a query's positive and the negatives of the step, softmax(log-odds of P(yes) / temperature), to the
    embedder's (U-MARVEL distils a reranker so)."""
    distillation_temperature: PositiveFloat = 1.0
    matryoshka: tuple[PositiveInt, ...] = ()
    """Also compare the first 64, 128, … dimensions: the contrastive loss is the mean over these and the whole vector, so that
    truncated vectors can be searched (`index --dims`, `dimensions` of the service). Empty: the paper's loss."""


class OptimiserSettings(_Settings):
    kind: Literal["adamw", "muon"] = "adamw"
    """`muon`: Muon (Jordan et al. 2024; torch's) for the LoRA matrices, AdamW for the rest. Its steps have the size of AdamW's
    (arXiv 2502.16982), so the same `lr` suits both."""
    lr: PositiveFloat = 2e-4
    lr_scaling: Literal["none", "sqrt", "linear"] = "none"
    """`lr` follows `batch.global_batch_size`: it is multiplied by global_batch_size / lr_batch_size (`linear`: Goyal et al.,
    arXiv 1706.02677, for SGD), or by its square root (`sqrt`: Malladi et al., arXiv 2205.10287, for Adam)."""
    lr_batch_size: PositiveInt = 1024
    """The batch size for which `lr` is given, with `lr_scaling`."""
    token_lr_multiplier: PositiveFloat = 1.0
    """Factor on the learning rate of token rows. Adam moves every entry by about the learning rate in each step, and a rate
    that suits LoRA is large compared with a base's token rows (``model.trained_rows: all``)."""
    weight_decay: NonNegativeFloat = 0.0
    warmup_ratio: Annotated[float, Field(ge=0, lt=1)] = 0.03
    """Share of the steps in which the learning rate rises from 0."""
    schedule: Literal["cosine", "constant"] = "cosine"
    max_grad_norm: PositiveFloat = 1.0
    epochs: PositiveFloat = 1.0
    max_steps: PositiveInt | None = None
    """Number of steps, instead of `epochs`."""


class TracesSettings(_Settings):
    """Whose traces precede the embedding in the contrastive pass. At inference the embedding follows the student's own."""

    contrastive: Traces = "teacher"
    """`own`: traces that the student wrote itself; `mixed`: for half of the queries, drawn anew each epoch."""
    refresh: PositiveInt = 100
    """Steps between refreshes of the student's own traces."""
    first_refresh: NonNegativeInt = 0
    """Steps before its first own traces."""
    first_stage_steps: NonNegativeInt = 0
    """Two stages: so many steps learn traces and routes alone, then the contrastive loss joins. They embed no candidates, so
    they cost about half. `direct`, which has no traces, has one stage. 0 is the paper's single stage."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of TRACE's reasoning queries, drawn anew each epoch, whose embedding in the contrastive pass is the one without a
    trace, so that it is trained too (`adaptive.fallback`, a route that errs). They go on learning their trace and route."""

    @property
    def first_own(self) -> int:
        """Steps before the student's first own traces; the first stage needs none."""
        return max(self.first_refresh, self.first_stage_steps)


class CheckpointSettings(_Settings):
    save_every: PositiveInt = 200
    """Steps between checkpoints."""
    keep: PositiveInt = 2
    """How many of the last checkpoints are kept."""


class AdaptiveSettings(_Settings):
    """How queries are embedded at inference."""

    route: RouteChoice = "learned"
    max_new_tokens: PositiveInt = 128
    """A trace that has not ended by then is cut and embedded as it is; such traces are counted."""
    fallback: Annotated[float, Field(le=0)] | None = None
    """A query whose trace's mean log-probability (`QueryEmbedding.confidence`) is below this gets its bypass embedding. It has
    paid for the trace. Needs `model.pooling: pre`. `evaluation.fallbacks` shows what a value would do."""
    engine: Engine = "transformers"
    """What embeds in `eval`, `index`, `zero-shot run` and `serve-embeddings`. `vllm` is faster. It needs whole weights: an
    adapter's are made once and kept in the cache ($MBEIR_COT_CACHE), as large as the base."""
    prefill_rows: PositiveInt = 32
    """Queries in a prefill; with vLLM, requests that wait beside those in its batch."""
    decode_rows: PositiveInt = 64
    """Queries that write their traces together; with vLLM, all requests in its batch."""


class EvaluationSettings(_Settings):
    split: EvaluationSplit = "test"
    candidate_batch_size: PositiveInt = 64
    """Candidates in a forward pass."""
    workers: PositiveInt = 1
    """Ray actors that embed candidate pools and queries, each with its own copy of the model (and its own GPU, if there are
    any); 1: this process."""
    union: bool = True
    """Search the union of all local pools too."""
    teacher_trace_dataset: str | None = None
    """A dataset that was built on this split (``input.split``). Its traces give an upper bound of hit@k, and the share of the
    student's traces that agree with the teacher's."""
    swap_test: bool = False
    """Embed the queries of `trace` that reason after other traces too (none, another query's, their own words in random order),
    to measure what the trace contributes. Three more searches of all pools."""
    fallbacks: tuple[Annotated[float, Field(le=0)], ...] = ()
    """Score `trace` with these values of `adaptive.fallback` too: a row each, of the same embeddings. Choose one on `val`."""
    base: bool = True
    """Also score the untrained base."""
    base_answers: bool = False
    """Also score the untrained base with prompts that suit it (the prompt set's sub-directory ``base``): it answers each query
    first, then embeds. It costs a trace for every query, and embeds all pools once more."""


class TrainConfig(_Settings):
    """A whole config file."""

    model: ModelSettings
    data: DataSettings
    out: Path
    """The run's directory. Each variant has a directory of its name in it."""
    variants: tuple[Variant, ...] = ("trace",)
    """What `mbeir-cot train` trains: TRACE and its controls, on the same queries and budget."""
    batch: BatchSettings = BatchSettings()
    loss: LossSettings = LossSettings()
    optimiser: OptimiserSettings = OptimiserSettings()
    traces: TracesSettings = TracesSettings()
    checkpoint: CheckpointSettings = CheckpointSettings()
    adaptive: AdaptiveSettings = AdaptiveSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    seed: NonNegativeInt = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    tensorboard: bool = False
    trackers: tuple[str, ...] = ()
    """Experiment trackers that get what `metrics.jsonl` gets, by accelerate's names: wandb, trackio, mlflow, …. Each must be
    installed and is configured as usual (WANDB_PROJECT, MLFLOW_TRACKING_URI, …)."""

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if "always-reason" in self.variants and self.data.always_reason_dataset is None:
            raise ValueError(
                "variants: always-reason needs data.always_reason_dataset, the same queries built with --set route.threshold=0"
            )
        if self.model.train_projector and self.model.dtype == "bfloat16" and not self.model.autocast:
            raise ValueError("model.train_projector keeps the projector in float32: with dtype bfloat16 set model.autocast")
        if self.loss.distillation_weight and self.data.hard_negatives != "mined":
            raise ValueError(
                "loss.distillation_weight needs data.hard_negatives: mined, from `mbeir-cot mine RUN --verifier CONFIG`"
            )
        if not self.model.writes and (reason := self._asks_for_traces()):
            raise ValueError(
                f"model.pooling: mean and model.bidirectional_attention are for `direct` in transformers: {reason}"
            )
        if self.model.pooling != "pre" and (self.adaptive.fallback is not None or self.evaluation.fallbacks):
            raise ValueError("adaptive.fallback and evaluation.fallbacks need model.pooling: pre: its prefill embeds both ways")
        return self

    def _asks_for_traces(self) -> str | None:
        """What a model that writes no trace cannot do."""
        if others := [variant for variant in self.variants if variant != "direct"]:
            return f"{', '.join(others)} writes traces; set variants: [direct]"
        if self.evaluation.base_answers:
            return "evaluation.base_answers lets the base write"
        if self.adaptive.engine == "vllm":
            return "vLLM would attend causally and read one state; set adaptive.engine: transformers"
        return None
