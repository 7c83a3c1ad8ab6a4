"""Settings of TRACE's training, embedding and evaluation: what ``configs/train-*.yaml`` hold."""

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
Pooling = Literal["pre", "token"]
Autocast = bool | Literal["auto"]
Traces = Literal["teacher", "own", "mixed"]
Engine = Literal["transformers", "vllm"]
RouteChoice = Literal["learned", "always-direct", "always-reason", "given"]

LANGUAGE_MODEL_LINEARS = r".*language_model\.layers\.\d+\.(self_attn\.(q|k|v|o)_proj|mlp\.(gate|up|down)_proj)"
"""By full name: a list of suffixes would hit the vision tower's MLP too."""


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
    """What is fitted."""

    base: str
    """A directory or Hub repository: any Qwen2.5-VL or Qwen3-VL."""
    revision: str | None = None
    pooling: Pooling = "pre"
    """`pre`: the state before the embedding token, which predicts it (paper: 57.0 against 52.3 on CIRR). `token`: its own."""
    lora: LoraSettings = LoraSettings()
    trained_rows: Literal["emb", "all"] = "emb"
    """Rows of the embedding matrix that are trained: the embedding token's, or all, for a base that has never seen some words
    of the traces (the pocket base has not; a real one has)."""
    train_projector: bool = False
    """Train the merger between vision tower and language model too (the paper's figure shows it trainable)."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the frozen weights. What is trained is kept in float32."""
    autocast: Autocast = False
    """Matrix products in bfloat16. `auto`: where the hardware has them, so on GPUs and on some processors."""
    attention: Literal["eager", "sdpa", "flash_attention_2"] = "sdpa"
    gradient_checkpointing: bool = False
    max_pixels: PositiveInt | None = None
    """Larger images are reduced by the processor [default: the checkpoint's own limit]."""
    trust_remote_code: bool = False


class DataSettings(_Settings):
    """What it learns from."""

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
    hard_negatives: NonNegativeInt = 0
    """Listed negatives added per query."""
    upsample: bool = False
    """Repeat records as often as the up-sampled union file does."""
    hold_out: tuple[str, ...] = ()
    """Dataset-tasks (such as nights_task4) whose rows are left out of training. `eval` scores them in a group of their own."""
    skip_unreadable: bool = False
    """Leave out what shows an image that cannot be read (missing, damaged, of a shape that the processor refuses), count and
    list it, in training, evaluation and index; otherwise the first one ends the work. A query that is left out of an evaluation
    counts as a miss. Training checks all images before its first step."""
    workers: NonNegativeInt = 1
    """Processes that read and prepare batches. They do not change the order."""
    prefetch: PositiveInt = 2
    """Batches that each of them has ready, in /dev/shm: a training that would fill it is refused at its start."""

    @field_validator("hold_out")
    @classmethod
    def _known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            DatasetTask.parse(name)
        return tuple(sorted(set(names)))


class BatchSettings(_Settings):
    global_batch_size: PositiveInt = 1024
    """Global: over all processes."""
    micro_batch_size: PositiveInt | Literal["auto"] = 16
    """Rows (queries and candidates) whose activations are held at once: this decides the memory, `global_batch_size` does not.
    `auto`: as many as fit into `memory_share` of the GPU, tried at the start with large rows of the data, and kept when the run
    is resumed; 16 on CPU."""
    memory_share: Annotated[float, Field(gt=0, le=1)] = 0.85
    """Of a GPU's memory, for `micro_batch_size: auto`. The rest is for fragmentation, larger rows, and other libraries."""
    forward_batch_size: PositiveInt | None = None
    """Rows in a forward pass [default: `micro_batch_size`]. Fewer rows need less padding."""
    micro_batch_patches: PositiveInt = 65_536
    """Most image patches in a forward pass (a single row may have more)."""
    vision_cache_gib: NonNegativeFloat = 4.0
    """GiB of a device that may hold, from the first pass of a step to the second, what the vision tower gave: the same while
    nothing but its projector is trained. A 7B's picture of 341x256 takes 1.1 MB; what does not fit is computed again."""
    sampling: Literal["mixed", "by-task"] = "mixed"
    """`by-task`: all queries of a batch are of one dataset-task, so its negatives are of one kind."""
    balance: Annotated[float, Field(ge=0, le=1)] = 1.0
    """Dataset-tasks are drawn by size ** balance: 1 as they are, 0 all alike."""


class LossSettings(_Settings):
    """L = generation * (CE + route * CE of the first token) + retrieval * InfoNCE."""

    generation_weight: NonNegativeFloat = 1.0
    retrieval_weight: NonNegativeFloat = 1.0
    route_weight: NonNegativeFloat = 0.0
    """Weight of the first token's CE on its own. The mean over a trace of n tokens gives the first one, which decides the
    route, 1/n of the weight that a bypass gives it. 0 is the paper's loss."""
    temperature: PositiveFloat = 0.02
    """The paper gives none; 0.02 is its authors' later choice."""
    learn_temperature: bool = False
    bidirectional: bool = False
    """Add candidates -> queries."""


class OptimiserSettings(_Settings):
    lr: PositiveFloat = 2e-4
    token_lr_multiplier: PositiveFloat = 1.0
    """Factor on the learning rate of token rows. Adam moves every entry of a row by about the learning rate at each step, and
    one that suits a LoRA is large beside the rows of a base (``model.trained_rows: all``)."""
    weight_decay: NonNegativeFloat = 0.0
    warmup_ratio: Annotated[float, Field(ge=0, lt=1)] = 0.03
    """Share of the steps."""
    schedule: Literal["cosine", "constant"] = "cosine"
    max_grad_norm: PositiveFloat = 1.0
    epochs: PositiveFloat = 1.0
    max_steps: PositiveInt | None = None
    """Instead of `epochs`."""


class TracesSettings(_Settings):
    """Whose traces the contrastive pass is conditioned on. In service the embedding follows the student's own."""

    contrastive: Traces = "teacher"
    """`own`: traces that the student wrote itself; `mixed`: for half of the queries, drawn anew each epoch."""
    refresh: PositiveInt = 100
    """Steps after which the student writes its traces anew."""
    first_refresh: NonNegativeInt = 0
    """Steps before its first own traces."""


class CheckpointSettings(_Settings):
    save_every: PositiveInt = 200
    """Steps."""
    keep: PositiveInt = 2
    """How many of the last checkpoints are kept."""


class AdaptiveSettings(_Settings):
    """How queries are embedded in service."""

    route: RouteChoice = "learned"
    max_new_tokens: PositiveInt = 128
    """A trace that has not ended by then is cut, and its embedding read where it stands; such traces are counted."""
    engine: Engine = "transformers"
    """What embeds in `eval`, `index` and `zero-shot run`. `vllm` is faster. It needs whole weights: an adapter's are made once
    and kept in the cache ($MBEIR_COT_CACHE), as large as the base."""
    prefill_rows: PositiveInt = 32
    """Queries in a prefill; with vLLM, requests that wait beside those in its batch."""
    decode_rows: PositiveInt = 64
    """Queries that write their traces together; with vLLM, all requests in its batch."""


class EvaluationSettings(_Settings):
    split: EvaluationSplit = "test"
    candidate_batch_size: PositiveInt = 64
    """Candidates in a forward pass."""
    workers: PositiveInt = 1
    """Ray actors that embed candidate pools and queries, each with a copy of the model (and a GPU, where there are); 1: this
    process."""
    union: bool = True
    """Search the union of all local pools too."""
    teacher_trace_dataset: str | None = None
    """A dataset that was built on this split (``input.split``): the teacher's traces, for the ceiling of hit@k with right
    traces given and for the share of the student's that agree."""
    swap_test: bool = False
    """Embed the queries of `trace` that reason after other traces too (none, another query's, their own words in random order):
    how much of the hit rates is the trace's. Three more searches of all pools."""
    base: bool = True
    """Score the base without any training too."""


class TrainConfig(_Settings):
    """A whole config file."""

    model: ModelSettings
    data: DataSettings
    out: Path
    """The run's directory. Each variant has a directory of its name in it."""
    variants: tuple[Variant, ...] = ("trace",)
    """What `mbeir-cot train` fits: TRACE and its controls, on the same queries and budget."""
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
    """Experiment trackers that get what `metrics.jsonl` gets, by accelerate's names: wandb, trackio, mlflow, …; each has to be
    installed, and is told where to write as it always is (WANDB_PROJECT, MLFLOW_TRACKING_URI, …)."""

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if "always-reason" in self.variants and self.data.always_reason_dataset is None:
            raise ValueError(
                "variants: always-reason needs data.always_reason_dataset, the same queries built with --set route.threshold=0"
            )
        if self.model.train_projector and self.model.dtype == "bfloat16" and not self.model.autocast:
            raise ValueError("model.train_projector keeps the projector in float32: with dtype bfloat16 set model.autocast")
        return self
