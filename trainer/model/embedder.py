"""The TRACE embedder: a vision-language model with one more token, a LoRA on its language model, and a pooling rule.

What is saved is small: the adapter (with the new token's row) and ``embedder.json``, which names base, pooling, token and
prompt set, so that a checkpoint cannot be used with another pooling by mistake.
"""

from __future__ import annotations

import hashlib
import json
import math
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Final, Self, cast

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor, AutoTokenizer

from pipeline.serving.cpu_features import cpu_multiplies_bfloat16
from prompts import PromptSet
from schemas.errors import ConfigError, InputError
from schemas.os_errors import explained
from schemas.record import EMB_TOKEN
from schemas.training import Autocast, ModelSettings, Pooling
from trainer.data.encoding import MicroBatch, SequenceEncoder
from trainer.data.tower_plan import TowerPlan, vision_tower
from trainer.model.losses import trace_losses
from trainer.model.vision_attention import batch_windows
from trainer.model.vision_cache import Seen

IDENTITY: Final = "embedder.json"
EXTRAS: Final = "extras.safetensors"


class Identity(BaseModel):
    """What a checkpoint is, beside its weights."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: int = 1
    base: str
    revision: str | None
    pool: Pooling
    emb_token: str
    prompts: str
    max_pixels: int | None
    temperature: float
    merged: bool = False
    """The weights are whole (written by `merge`), not an adapter of `base`."""

    @classmethod
    def read(cls, directory: Path) -> Identity:
        path = directory / IDENTITY
        try:
            return cls.model_validate_json(path.read_bytes())
        except OSError as error:
            raise InputError(f"{directory} is no checkpoint of this trainer ({path.name}: {explained(error).cause})") from error
        except ValidationError as error:
            raise InputError(f"{path} is damaged: {error.errors()[0]['msg']}", "use another checkpoint of the run") from error


class Embedder(nn.Module):
    """`model` is the plain model with LoRA layers in it; `peft` the same with PEFT's saving around it (None when merged)."""

    def __init__(self, model: Any, peft: PeftModel | None, processor: Any, identity: Identity, *, autocast: Autocast) -> None:
        super().__init__()
        self.model = model
        self.processor, self.identity, self.autocast = processor, identity, autocast
        self._peft = [peft]  # in a list: not a submodule twice
        self.emb_id: int = processor.tokenizer.convert_tokens_to_ids(EMB_TOKEN)
        self.log_scale = nn.Parameter(torch.tensor(-math.log(identity.temperature)), requires_grad=False)

    @classmethod
    def create(
        cls,
        settings: ModelSettings,
        prompts: str,
        *,
        temperature: float = 0.02,
        learn_temperature: bool = False,
        weights: bool = True,
    ) -> Embedder:
        """The base with a fresh adapter. Seed torch before calling for a deterministic start.

        `weights=False`: shapes only, on the meta device.
        """
        model, processor = _load(settings.base, settings, weights=weights)
        emb_id = add_emb_token(model, processor.tokenizer)
        trained = [emb_id] if settings.trained_rows == "emb" else list(range(model.get_input_embeddings().weight.shape[0]))
        rows = {"embed_tokens": trained}
        if not model.config.tie_word_embeddings:
            rows["lm_head"] = trained
        lora = LoraConfig(
            r=settings.lora.r,
            lora_alpha=settings.lora.alpha,
            lora_dropout=settings.lora.dropout,
            target_modules=settings.lora.targets,
            trainable_token_indices=rows,
        )
        try:
            peft = get_peft_model(model, lora)
        except ValueError as error:
            raise ConfigError(
                f"model.lora.targets {settings.lora.targets!r} fits no module of {settings.base}: {error}",
                "name modules by a regular expression on their full names",
            ) from error
        identity = Identity(
            base=settings.base,
            revision=settings.revision,
            pool=settings.pooling,
            emb_token=EMB_TOKEN,
            prompts=prompts,
            max_pixels=settings.max_pixels,
            temperature=temperature,
        )
        embedder = cls(model, peft, processor, identity, autocast=settings.autocast)
        embedder.log_scale.requires_grad_(learn_temperature)
        if settings.train_projector:
            for name, parameter in model.named_parameters():
                if ".visual." in name and "merger" in name:  # Qwen3-VL has deepstack mergers too
                    parameter.requires_grad_(True)
        for parameter in embedder.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
        if settings.gradient_checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        return embedder

    @classmethod
    def load(cls, directory: Path, settings: ModelSettings | None = None, *, pool: Pooling | None = None) -> Embedder:
        """A checkpoint for use. `pool`: raise ConfigError unless the checkpoint was trained with it."""
        identity = Identity.read(directory)
        if pool is not None and pool != identity.pool:
            raise ConfigError(
                f"{directory} was trained with pool: {identity.pool}, not {pool}", f"set model.pooling: {identity.pool}"
            )
        known = settings or ModelSettings(base=identity.base, revision=identity.revision)
        base = str(directory) if identity.merged else known.base  # a base may be elsewhere here
        known = known.model_copy(update={"base": base, "max_pixels": identity.max_pixels})
        model, processor = _load(base, known)
        if identity.merged:
            if EMB_TOKEN not in processor.tokenizer.get_vocab():
                raise InputError(f"the tokenizer in {directory} has no {EMB_TOKEN}", "export the run again")
            return cls(model, None, processor, identity, autocast=known.autocast).eval()
        _check_token(directory, add_emb_token(model, processor.tokenizer))
        try:
            peft = PeftModel.from_pretrained(model, directory)
            extras = load_file(directory / EXTRAS)
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:  # what damaged files raise
            raise InputError(f"the checkpoint {directory} cannot be read: {error}", "use another one of the run") from error
        embedder = cls(model, peft, processor, identity, autocast=known.autocast)
        embedder.load_extras(extras)
        return embedder.eval()

    @property
    def peft(self) -> PeftModel:
        """The model with PEFT's saving around it; merged weights have none."""
        if self._peft[0] is None:
            raise ConfigError(f"{self.identity.base} is merged and has no adapter", "use the run that it was merged from")
        return self._peft[0]

    @property
    def device(self) -> torch.device:
        return self.log_scale.device

    @property
    def head(self) -> nn.Module:
        return cast(nn.Module, self.model.lm_head)

    @property
    def scale(self) -> Tensor:
        """1/τ, at most 200."""
        return self.log_scale.exp().clamp(max=200.0)

    def casting(self) -> AbstractContextManager[Any]:
        """Matrix products in bfloat16, where the settings say so."""
        wanted = self.autocast
        if wanted == "auto":
            wanted = self.device.type != "cpu" or cpu_multiplies_bfloat16()
        return torch.autocast(self.device.type, torch.bfloat16) if wanted else nullcontext()

    def encoder(self, prompts: PromptSet | None = None) -> SequenceEncoder:
        known = prompts or PromptSet.load(self.identity.prompts)
        return SequenceEncoder(self.processor, known, self.identity.pool, self.emb_id, tower=TowerPlan.of(self.model))

    def states(self, chunk: MicroBatch, *, seen: Seen | None = None) -> Tensor:
        """Final states, normalised by the model's own last norm: (rows, length, dim). What stands on padding means nothing.

        No mask is given: rows are padded on the right and attention looks back, so padding is never looked at.
        """
        chunk = chunk.to(self.device, pixels=seen is None)
        inputs: dict[str, Any] = {name: chunk.inputs[name] for name in ("input_ids", "position_ids", "mm_token_type_ids")}
        if seen is not None:
            shown = seen.merged(vision_tower(self.model), chunk.host["image_grid_thw"], chunk.tower.get("window_index"))
            inputs["mm_encoder_outputs"] = {"image": shown}
        elif "pixel_values" in chunk.inputs:
            inputs["mm_encoder_outputs"] = {"image": self._look(chunk)}
        return cast(Tensor, self.model.model(**inputs, use_cache=False).last_hidden_state)

    def _look(self, chunk: MicroBatch) -> Any:
        grids = chunk.host.get("image_grid_thw", chunk.inputs["image_grid_thw"])
        host = {name: value for name, value in chunk.host.items() if name != "image_grid_thw"}
        tower = vision_tower(self.model)
        if tower is not None and str(tower.config._attn_implementation).startswith("flash"):  # its kernels read lengths there
            grids, host = grids.to(self.device), {name: value.to(self.device) for name, value in host.items()}
        placed = {f"image_{name}": value for name, value in (chunk.tower | host).items()}
        return self.model.model.get_image_features(chunk.inputs["pixel_values"], grids, return_dict=True, **placed)

    def forward(
        self, chunk: MicroBatch, *, labelled: bool = True, route: float = 0.0, seen: Seen | None = None
    ) -> tuple[Tensor, Tensor]:
        """(embeddings of unit length (rows, dim) in float32, CE per row (rows,)). `labelled=False` leaves CE at 0.

        `route`: see `trace_losses`. `seen`: what the vision tower gave for these pictures before.
        """
        chunk = chunk.to(self.device, pixels=seen is None)
        with self.casting():
            states = self.states(chunk, seen=seen)
            losses = states.new_zeros(len(states), dtype=torch.float32)
            if labelled:
                losses = trace_losses(states, chunk.labels, self.head, route=route, learnt=chunk.learnt)
        return pooled(states, chunk.last), losses

    def save(self, directory: Path) -> None:
        """Writes adapter, token row, extras, processor and identity into an existing directory."""
        self.peft.save_pretrained(directory, save_embedding_layers=False)
        save_file({name: value.detach().cpu() for name, value in self.extras().items()}, directory / EXTRAS)
        self.processor.save_pretrained(directory)
        temperature = 1 / float(self.scale.detach())
        identity = self.identity.model_copy(update={"temperature": temperature})
        (directory / IDENTITY).write_text(json.dumps(identity.model_dump(), indent=1) + "\n", encoding="utf-8")

    def extras(self) -> dict[str, Tensor]:
        """What is trained and is not the adapter's: the temperature, and the projector when it is trained."""
        found = {"log_scale": self.log_scale}
        found |= {name: value for name, value in self.model.named_parameters() if "merger" in name and value.requires_grad}
        return {name: value.contiguous() for name, value in found.items()}

    def load_extras(self, extras: dict[str, Tensor]) -> None:
        own = dict(self.model.named_parameters()) | {"log_scale": self.log_scale}
        with torch.no_grad():
            for name, value in extras.items():
                own[name].copy_(value)

    def folded(self) -> Self:
        """With the adapter folded into the weights, for use only: fewer products, the same embeddings up to rounding."""
        self.model, self._peft = self.merged_model(), [None]
        return self

    def merged_model(self) -> Any:
        """The model with the adapter folded into its weights. The embedder is not usable for training afterwards."""
        peft = self._peft[0]
        return self.model if peft is None else peft.merge_and_unload()

    def eval(self) -> Self:
        return self.train(False)


def pooled(states: Tensor, last: Tensor) -> Tensor:
    """The states at `last`, of unit length, in float32. states (rows, length, dim), last (rows,) -> (rows, dim)."""
    at = states[torch.arange(len(states), device=states.device), last]
    return nn.functional.normalize(at.float(), dim=-1)


def add_emb_token(model: Any, tokenizer: Any) -> int:
    """Adds the embedding token (if it is not there) and returns its id. The matrix is never shrunk.

    A new row begins as the mean of all: the base has no opinion on the token.
    """
    tokenizer.add_special_tokens({"extra_special_tokens": [EMB_TOKEN]}, replace_extra_special_tokens=False)
    emb_id: int = tokenizer.convert_tokens_to_ids(EMB_TOKEN)
    if emb_id is None or emb_id == tokenizer.unk_token_id:
        raise InputError(f"the tokenizer took no {EMB_TOKEN}", "use a tokenizer that can be extended")
    rows = model.get_input_embeddings().weight.shape[0]
    mean = model.get_input_embeddings().weight.data.float().mean(0)
    mean_out = model.get_output_embeddings().weight.data.float().mean(0)
    if emb_id >= rows:
        model.resize_token_embeddings(max(len(tokenizer), rows), mean_resizing=False)
    with torch.no_grad():
        model.get_input_embeddings().weight[emb_id] = mean.to(model.dtype)
        if not model.config.tie_word_embeddings:
            model.get_output_embeddings().weight[emb_id] = mean_out.to(model.dtype)
    return emb_id


def _check_token(directory: Path, emb_id: int) -> None:
    """The adapter's row for the embedding token is of the id that the token had: raises InputError where that is not its id."""
    try:
        known = AutoTokenizer.from_pretrained(directory).get_vocab().get(EMB_TOKEN)
    except (OSError, ValueError) as error:
        raise InputError(f"the tokenizer in {directory} cannot be read: {error}", "use another one of the run") from error
    if known is None:
        raise InputError(f"the tokenizer in {directory} has no {EMB_TOKEN}", "it is no checkpoint of this trainer, or damaged")
    if known != emb_id:
        raise InputError(
            f"{EMB_TOKEN} is token {known} in {directory} and {emb_id} with its base",
            "the base's tokenizer has changed since: set model.revision to the one that was trained on",
        )


def _load(base: str, settings: ModelSettings, *, weights: bool = True) -> tuple[Any, Any]:
    known = {"revision": settings.revision, "trust_remote_code": settings.trust_remote_code}
    made = {"dtype": getattr(torch, settings.dtype), "attn_implementation": settings.attention}
    try:
        processor = AutoProcessor.from_pretrained(base, **known)
        if weights:
            model = AutoModelForImageTextToText.from_pretrained(base, **made, **known)
        else:
            made.pop("attn_implementation")  # its package may be missing where nothing is run
            config = AutoConfig.from_pretrained(base, **known)
            with torch.device("meta"):
                model = AutoModelForImageTextToText.from_config(config, **made)
    except (OSError, ValueError, ImportError) as error:  # ImportError: an attention whose package is missing
        raise InputError(f"the model {base} cannot be loaded: {error}", "name a directory or Hub repository with it") from error
    if settings.max_pixels is not None:
        size = processor.image_processor.size
        least = size.get("shortest_edge", None)
        processor.image_processor.size = {
            "shortest_edge": min(least or settings.max_pixels, settings.max_pixels),
            "longest_edge": settings.max_pixels,
        }
    if settings.attention == "sdpa":
        batch_windows(model)
    model.requires_grad_(False)
    return model, processor


def fingerprint(model: Path) -> str:
    """Of an embedder's weights and identity; vectors of two embedders never meet."""
    digest = hashlib.sha256()
    for name in [*sorted(path.name for path in model.glob("*.safetensors")), "embedder.json"]:
        digest.update(name.encode())
        with (model / name).open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()
