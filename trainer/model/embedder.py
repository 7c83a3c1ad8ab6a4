"""The TRACE embedder: a vision-language model with one more token, a LoRA on its language model, and a pooling rule.

A checkpoint is small: the adapter (with the new token's row), what else is trained (`extras.safetensors`), the processor, and
`embedder.json` (`trainer.model.metadata`).
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Final, Self, cast

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pipeline.serving.cpu_features import cpu_multiplies_bfloat16
from prompts import PromptSet
from schemas.errors import ConfigError, InputError
from schemas.os_errors import refused_by_system
from schemas.record import EMB_TOKEN
from schemas.training import Autocast, ModelSettings, Pooling
from trainer.data.encoding import SequenceEncoder
from trainer.data.micro_batch import MicroBatch
from trainer.data.tower_plan import TowerPlan, vision_tower
from trainer.model.bidirectional_attention import attend_both_ways
from trainer.model.losses import trace_losses
from trainer.model.metadata import EmbedderMetadata
from trainer.model.pretrained import add_emb_token, check_emb_token, load_pretrained
from trainer.model.vision_cache import Seen

EXTRAS: Final = "extras.safetensors"


class Embedder(nn.Module):
    """`model` is the plain model with LoRA layers in it; `peft` wraps it for saving (None when the weights are merged)."""

    def __init__(
        self, model: Any, peft: PeftModel | None, processor: Any, metadata: EmbedderMetadata, *, autocast: Autocast
    ) -> None:
        super().__init__()
        self.model = model
        self.processor, self.metadata, self.autocast = processor, metadata, autocast
        if metadata.bidirectional:
            attend_both_ways(model)
        self._peft = [peft]  # in a list, so that it is not registered as a second submodule
        self.emb_id: int = processor.tokenizer.convert_tokens_to_ids(EMB_TOKEN)
        self.log_scale = nn.Parameter(torch.tensor(-math.log(metadata.temperature)), requires_grad=False)

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
        """The base with a fresh adapter. Seed torch before the call for a deterministic start.

        `weights=False`: shapes only, on the meta device.
        """
        model, processor = load_pretrained(settings.base, settings, weights=weights)
        peft = _add_lora(model, settings, add_emb_token(model, processor.tokenizer))
        metadata = EmbedderMetadata(
            base=settings.base,
            revision=settings.revision,
            pool=settings.pooling,
            bidirectional=settings.bidirectional_attention,
            emb_token=EMB_TOKEN,
            prompts=prompts,
            max_pixels=settings.max_pixels,
            temperature=temperature,
        )
        embedder = cls(model, peft, processor, metadata, autocast=settings.autocast)
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
    def load(
        cls, directory: Path, settings: ModelSettings | None = None, *, pool: Pooling | None = None, weights: bool = True
    ) -> Embedder:
        """A checkpoint, for inference. `pool`: raise ConfigError unless the checkpoint was trained with it.

        `weights=False`: merged weights as shapes only, on the meta device, for another engine's inputs.
        """
        metadata = EmbedderMetadata.read(directory)
        if pool is not None and pool != metadata.pool:
            raise ConfigError(
                f"{directory} was trained with pool: {metadata.pool}, not {pool}", f"set model.pooling: {metadata.pool}"
            )
        settings = settings or ModelSettings(base=metadata.base, revision=metadata.revision)
        base = str(directory) if metadata.merged else settings.base  # the base may lie elsewhere on this machine
        settings = settings.model_copy(update={"base": base, "max_pixels": metadata.max_pixels})
        model, processor = load_pretrained(base, settings, weights=weights or not metadata.merged)
        if metadata.merged:
            if EMB_TOKEN not in processor.tokenizer.get_vocab():
                raise InputError(f"the tokenizer in {directory} has no {EMB_TOKEN}", "export the run again")
            return cls(model, None, processor, metadata, autocast=settings.autocast).eval()
        check_emb_token(directory, add_emb_token(model, processor.tokenizer))
        try:
            peft = PeftModel.from_pretrained(model, directory)
            extras = load_file(directory / EXTRAS)
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:  # what damaged files raise
            refused = refused_by_system(error)
            raise InputError(
                f"the checkpoint {directory} cannot be read: {refused.cause if refused else error}",
                refused.remedy if refused else "use another one of the run",
            ) from error
        embedder = cls(model, peft, processor, metadata, autocast=settings.autocast)
        embedder.load_extras(extras)
        return embedder.eval()

    @property
    def peft(self) -> PeftModel:
        """The model in PEFT's wrapper. Raises ConfigError for merged weights, which have none."""
        if self._peft[0] is None:
            raise ConfigError(f"{self.metadata.base} is merged and has no adapter", "use the run that it was merged from")
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
        """Runs matrix products in bfloat16, if the settings ask for it."""
        enabled = self.autocast
        if enabled == "auto":
            enabled = self.device.type != "cpu" or cpu_multiplies_bfloat16()
        return torch.autocast(self.device.type, torch.bfloat16) if enabled else nullcontext()

    def encoder(self, prompts: PromptSet | None = None) -> SequenceEncoder:
        """Makes this embedder's inputs. `prompts`: another prompt set than the one it was trained with."""
        prompts = prompts or PromptSet.load(self.metadata.prompts)
        return SequenceEncoder(self.processor, prompts, self.metadata.pool, self.emb_id, tower=TowerPlan.of(self.model))

    def states(self, chunk: MicroBatch, *, seen: Seen | None = None) -> Tensor:
        """Final states after the model's last norm: (sequences, length, dim). States at padding are meaningless.

        No mask is given where attention is causal: sequences are padded on the right, so padding is never attended to.
        """
        chunk = chunk.to(self.device, pixels=seen is None)
        inputs: dict[str, Any] = {name: chunk.inputs[name] for name in ("input_ids", "position_ids", "mm_token_type_ids")}
        if self.metadata.bidirectional:
            inputs["attention_mask"] = chunk.inputs["attention_mask"]
        if seen is not None:
            features = seen.merged(vision_tower(self.model), chunk.host["image_grid_thw"], chunk.tower.get("window_index"))
            inputs["mm_encoder_outputs"] = {"image": features}
        elif "pixel_values" in chunk.inputs:
            inputs["mm_encoder_outputs"] = {"image": self.encode_images(chunk)}
        return cast(Tensor, self.model.model(**inputs, use_cache=False).last_hidden_state)

    def encode_images(self, chunk: MicroBatch) -> Any:
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
        """(embeddings of unit length (sequences, dim) in float32, CE per sequence (sequences,)). `labelled=False` leaves CE at
        0.

        `route`: see `trace_losses`. `seen`: the vision tower's output for these images, from an earlier pass.
        """
        chunk = chunk.to(self.device, pixels=seen is None)
        with self.casting():
            states_BLD = self.states(chunk, seen=seen)
            losses_B = states_BLD.new_zeros(len(states_BLD), dtype=torch.float32)
            if labelled:
                losses_B = trace_losses(states_BLD, chunk.labels, self.head, route=route, learnt=chunk.learnt)
        if self.metadata.pool == "mean":
            return mean_states(states_BLD, chunk.inputs["attention_mask"]), losses_B
        return pool_states(states_BLD, chunk.last), losses_B

    def save(self, directory: Path) -> None:
        """Writes adapter, token row, extras, processor and metadata into an existing directory."""
        self.peft.save_pretrained(directory, save_embedding_layers=False)
        save_file({name: value.detach().cpu() for name, value in self.extras().items()}, directory / EXTRAS)
        self.processor.save_pretrained(directory)
        temperature = 1 / float(self.scale.detach())
        self.metadata.model_copy(update={"temperature": temperature}).write(directory)

    def extras(self) -> dict[str, Tensor]:
        """What is trained outside the adapter: the temperature, and the projector if it is trained."""
        extras = {"log_scale": self.log_scale}
        extras |= {name: value for name, value in self.model.named_parameters() if "merger" in name and value.requires_grad}
        return {name: value.contiguous() for name, value in extras.items()}

    def load_extras(self, extras: dict[str, Tensor]) -> None:
        own = dict(self.model.named_parameters()) | {"log_scale": self.log_scale}
        with torch.no_grad():
            for name, value in extras.items():
                own[name].copy_(value)

    def fold_adapter(self) -> Self:
        """Folds the adapter into the weights, for inference only: fewer products, the same embeddings up to rounding."""
        self.model, self._peft = self.merged_model(), [None]
        return self

    def merged_model(self) -> Any:
        """The model with the adapter folded into its weights. The embedder cannot be trained afterwards."""
        peft = self._peft[0]
        return self.model if peft is None else peft.merge_and_unload()

    def eval(self) -> Self:
        return self.train(False)


def pool_states(states_BLD: Tensor, last_B: Tensor) -> Tensor:
    """The states at `last_B`, of unit length, in float32: (B, D)."""
    pooled_BD = states_BLD[torch.arange(len(states_BLD), device=states_BLD.device), last_B]
    return nn.functional.normalize(pooled_BD.float(), dim=-1)


def mean_states(states_BLD: Tensor, mask_BL: Tensor) -> Tensor:
    """The mean over each sequence's states, of unit length, in float32: (B, D). Padding (0 in the mask) does not count."""
    summed_BD = torch.where(mask_BL.bool().unsqueeze(-1), states_BLD.float(), 0.0).sum(1)
    return nn.functional.normalize(summed_BD, dim=-1)  # the mean has the same direction


def _add_lora(model: Any, settings: ModelSettings, emb_id: int) -> PeftModel:
    """Raises ConfigError where `model.lora.targets` fits no module."""
    token_rows = [emb_id] if settings.trained_rows == "emb" else list(range(model.get_input_embeddings().weight.shape[0]))
    by_matrix = {"embed_tokens": token_rows}
    if not model.config.tie_word_embeddings:
        by_matrix["lm_head"] = token_rows
    lora = LoraConfig(
        r=settings.lora.r,
        lora_alpha=settings.lora.alpha,
        lora_dropout=settings.lora.dropout,
        target_modules=settings.lora.targets,
        trainable_token_indices=by_matrix,
    )
    try:
        return cast(PeftModel, get_peft_model(model, lora))
    except ValueError as error:
        raise ConfigError(
            f"model.lora.targets {settings.lora.targets!r} fits no module of {settings.base}: {error}",
            "name modules by a regular expression on their full names",
        ) from error
