"""Encodes queries, candidates and traces as the rows of a forward pass.

A row is a prompt (the student's query or candidate prompt in the chat template) and the text that the student wrote after it.
Its embedding is the state at its last position: with `pre` pooling a row ends *before* the embedding token, at the state that
predicts it; with `token` pooling it ends with the token.

    query      prompt + trace           labels: trace + emb token      embedding: last position
    candidate  prompt                   no labels                      embedding: last position
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from pipeline.mbeir.images import ImageStore
from pipeline.mbeir.instructions import candidate_text
from prompts import ImageSlot, Prompt, PromptSet
from schemas.content import ContentPart
from schemas.mbeir import Candidate
from schemas.training import Pooling
from trainer.data.pixels import PixelScale
from trainer.data.positions import compute_mrope_positions
from trainer.data.tower_plan import TowerPlan

IGNORE: Final = -100
LENGTH_STEP: Final = 16
"""Lengths are padded to multiples of this: on a CPU every new shape costs a compilation of its matrix products."""


class PreparedPicture(NamedTuple):
    """The image processor's output for a picture (about 1.5 MB, where a decoded photograph takes 36) and its size in pixels."""

    inputs: dict[str, Tensor]
    width: int
    height: int


@dataclass(frozen=True, slots=True)
class EncodedSequence:
    """`prompt` with its pictures in order, and `written`: the text after it, without the embedding token.

    name: qid or did, for messages.
    labelled: whether the written text and the embedding token after it are labels.
    pooled: whether the row's embedding is used.
    """

    name: str
    prompt: Prompt
    pictures: tuple[Image.Image | PreparedPicture, ...]
    written: str = ""
    labelled: bool = False
    pooled: bool = True


@dataclass(slots=True)
class MicroBatch:
    """Rows of one forward pass, right-padded.

    inputs: `input_ids`, `attention_mask`, `mm_token_type_ids` of shape (rows, length); `position_ids` (3, rows, length);
        if there are images, `image_grid_thw` (images, 3) and `pixel_values`: (patches, channels, values) in uint8 until the
        chunk is moved `to` its device, then (patches, values) in float32.
    labels: (rows, length); the token that should *follow* each position, IGNORE where there is no label.
    last: (rows,); the position of the embedding.
    places: (rows,); the index of the row's embedding in the batch, -1 for none.
    names: qid or did of each row.
    learnt: (labelled,); the positions with labels, in the flattened (rows * length).
    tower: the vision tower's windows and positions (`TowerPlan`), computed in advance.
    host: those that stay on the CPU, so that reading them does not wait for the GPU.
    """

    inputs: dict[str, Tensor]
    labels: Tensor
    last: Tensor
    places: Tensor
    names: list[str]
    learnt: Tensor
    tower: dict[str, Tensor] = field(default_factory=dict)
    host: dict[str, Tensor] = field(default_factory=dict)
    scale: PixelScale | None = None

    def to(self, device: torch.device, *, pixels: bool = True) -> MicroBatch:
        """A copy on the device. `pixels=False` drops the pixel values."""
        inputs = {name: value for name, value in self.inputs.items() if pixels or name != "pixel_values"}
        moved = replace(self, inputs=inputs, host={}).map_tensors(lambda tensor: tensor.to(device, non_blocking=True))
        raw = moved.inputs.get("pixel_values")
        if raw is not None and raw.dtype == torch.uint8 and self.scale is not None:
            moved.inputs["pixel_values"] = self.scale.normalise(raw)
        return replace(moved, host=self.host)

    def map_tensors(self, change: Callable[[Any], Any]) -> MicroBatch:
        """A copy with `change` applied to every tensor."""
        dicts = [{name: change(value) for name, value in one.items()} for one in (self.inputs, self.tower, self.host)]
        flat = {name: change(getattr(self, name)) for name in ("labels", "last", "places", "learnt")}
        return replace(self, inputs=dicts[0], tower=dicts[1], host=dicts[2], **flat)

    def __len__(self) -> int:
        return len(self.names)


def shows_image(candidate: Candidate) -> bool:
    return bool(candidate.img_path) and candidate.modality.has_image


def text_of(candidate: Candidate, max_chars: int) -> str:
    """The candidate's text as the model reads it; "" if its modality has none."""
    return read_text(candidate.txt, max_chars) if candidate.modality.has_text else ""


def read_text(text: str | None, max_chars: int) -> str:
    """M-BEIR's normal form of a text, truncated to `max_chars` characters."""
    return candidate_text(text)[:max_chars]


class SequenceEncoder:
    """Makes the rows and chunks of one checkpoint: tokenises texts and prepares images. Picklable."""

    def __init__(
        self, processor: Any, prompts: PromptSet, pool: Pooling, emb_id: int, *, tower: TowerPlan | None = None
    ) -> None:
        self.processor, self.prompts, self.pool, self.emb_id = processor, prompts, pool, emb_id
        self.tokenizer = processor.tokenizer
        self.tower, self.scale = tower, PixelScale.of(processor.image_processor)

    def encode_query(
        self,
        name: str,
        instruction: str,
        text: str | None,
        picture: Image.Image | PreparedPicture | None,
        *,
        written: str = "",
        **flags: bool,
    ) -> EncodedSequence:
        prompt = self.prompts.render(
            "student_query", instruction=instruction, query_text=text or "", has_image=picture is not None
        )
        return EncodedSequence(name, prompt, _per_slot(prompt, picture), written, **flags)

    def encode_interleaved(
        self, name: str, instruction: str, parts: Sequence[str | Image.Image | PreparedPicture], **options: Any
    ) -> EncodedSequence:
        """A query with several pictures: after the instruction, its texts and pictures in the order of `parts`."""
        content = tuple(part if isinstance(part, str) else ImageSlot("query") for part in parts)
        prompt = self.prompts.render("student_query", instruction=instruction, query_text=content, has_image=False)
        return EncodedSequence(name, prompt, tuple(part for part in parts if not isinstance(part, str)), **options)

    def encode_parts(
        self, name: str, instruction: str, parts: Sequence[ContentPart], images: ImageStore, **options: Any
    ) -> EncodedSequence:
        """`encode_interleaved`, from paths. Raises ImageProblem for an image that cannot be used."""
        content = [part.text or "" if part.image is None else self.prepare(images.open(part.image)) for part in parts]
        return self.encode_interleaved(name, instruction, content, **options)

    def prepare(self, picture: Image.Image) -> PreparedPicture:
        """Frees the caller from keeping the decoded picture, if it holds many rows."""
        return PreparedPicture(self._process_images([picture]), picture.width, picture.height)

    def encode_candidate(self, name: str, text: str | None, picture: Image.Image | PreparedPicture | None) -> EncodedSequence:
        prompt = self.prompts.render("student_candidate", candidate_text=text or "", has_image=picture is not None)
        return EncodedSequence(name, prompt, _per_slot(prompt, picture))

    def encode_pool_candidate(
        self, candidate: Candidate, images: ImageStore, *, max_chars: int, prepare: bool = False
    ) -> EncodedSequence:
        """A candidate of a pool, the same in training and embedding. `prepare`: see the method.

        Raises ImageProblem for an image that cannot be used.
        """
        decoded = images.open(candidate.img_path or "") if shows_image(candidate) else None
        picture = self.prepare(decoded) if prepare and decoded is not None else decoded
        return self.encode_candidate(candidate.did, text_of(candidate, max_chars), picture)

    def tokenise(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=False).input_ids if text else []
        return ids

    def make_chunk(
        self, rows: Sequence[EncodedSequence], places: Sequence[int] = (), *, prompts_only: bool = False
    ) -> MicroBatch:
        """The rows of one forward pass. `prompts_only`: end each after its prompt, whatever the pooling (for generation)."""
        pictures = [picture for row in rows for picture in row.pictures]
        visual: dict[str, Tensor] = self._process_images(pictures) if pictures else {}
        merge = self.processor.image_processor.merge_size**2
        tokens = iter((visual["image_grid_thw"].prod(-1) // merge).tolist() if pictures else [])
        sequences, starts = [], []
        for row in rows:
            prompt = self._prompt_ids(row, tokens)
            written = [] if prompts_only else self.tokenise(row.written)
            ending = [self.emb_id] if self.pool == "token" and not prompts_only else []
            sequences.append(prompt + written + ending)
            starts.append(len(prompt))
        ids_BL, mask_BL, labels_BL = self._pad(rows, sequences, starts)
        is_image_BL = (ids_BL == self.processor.image_token_id).int()
        inputs: dict[str, Tensor] = {
            "input_ids": ids_BL,
            "attention_mask": mask_BL,
            "mm_token_type_ids": is_image_BL,
            "position_ids": compute_mrope_positions(
                is_image_BL, mask_BL, visual.get("image_grid_thw"), self.processor.image_processor.merge_size
            ),
            **{name: visual[name] for name in ("pixel_values", "image_grid_thw") if name in visual},
        }
        chunk = MicroBatch(
            inputs=inputs,
            labels=labels_BL,
            last=mask_BL.sum(1) - 1,
            places=torch.tensor(list(places) if places else list(range(len(rows)))),
            names=[row.name for row in rows],
            learnt=(labels_BL != IGNORE).flatten().nonzero().flatten(),
            scale=self.scale,
        )
        if pictures and self.tower is not None:
            chunk.tower, lengths = self.tower.place(visual["image_grid_thw"])
            chunk.host = {"image_grid_thw": visual["image_grid_thw"], **lengths}
        return chunk

    def _pad(
        self, rows: Sequence[EncodedSequence], sequences: Sequence[list[int]], starts: Sequence[int]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(ids, mask, labels), each (rows, length). starts: where the text after the prompt begins."""
        length = max(map(len, sequences))
        length += -length % LENGTH_STEP
        ids_BL = torch.full((len(rows), length), self.tokenizer.pad_token_id or 0)
        mask_BL = torch.zeros_like(ids_BL)
        labels_BL = torch.full_like(ids_BL, IGNORE)
        for i, (row, sequence, start) in enumerate(zip(rows, sequences, starts, strict=True)):
            ids_BL[i, : len(sequence)] = torch.tensor(sequence)
            mask_BL[i, : len(sequence)] = 1
            if row.labelled:
                labels = sequence[start:] if self.pool == "token" else [*sequence[start:], self.emb_id]
                labels_BL[i, start - 1 : start - 1 + len(labels)] = torch.tensor(labels)
        return ids_BL, mask_BL, labels_BL

    def _process_images(self, pictures: Sequence[Image.Image | PreparedPicture]) -> dict[str, Tensor]:
        if any(isinstance(picture, PreparedPicture) for picture in pictures):
            each = [one.inputs if isinstance(one, PreparedPicture) else self._process_images([one]) for one in pictures]
            return {name: torch.cat([inputs[name] for inputs in each]) for name in each[0]}
        processor = self.processor.image_processor
        decoded = [picture for picture in pictures if isinstance(picture, Image.Image)]
        if self.scale is None:
            return dict(processor(images=decoded, return_tensors="pt"))
        return self.scale.make_patches(processor, decoded)

    def make_chunks(self, rows: Sequence[EncodedSequence], size: int, patches: int) -> list[MicroBatch]:
        """All rows in chunks of at most `size` rows and `patches` image patches, with rows of similar length together."""
        places, next_place = [], 0
        for row in rows:
            places.append(next_place if row.pooled else -1)
            next_place += row.pooled
        order = sorted(range(len(rows)), key=lambda i: (len(rows[i].pictures), _characters(rows[i]), i))
        return [
            self.make_chunk([rows[i] for i in part], [places[i] for i in part])
            for part in _split(order, [self.count_patches(row) for row in rows], size, patches)
        ]

    def _prompt_ids(self, row: EncodedSequence, image_tokens: Iterator[int]) -> list[int]:
        content = [{"type": "image"} if isinstance(part, ImageSlot) else {"type": "text", "text": part} for part in row.prompt]
        text: str = self.processor.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
        )
        token = self.processor.image_token
        first, *others = text.split(token)
        text = first + "".join(token * next(image_tokens) + piece for piece in others)
        ids: list[int] = self.tokenizer(text, add_special_tokens=False).input_ids
        return ids

    def count_patches(self, row: EncodedSequence) -> int:
        """Image patches of the row, before the image processor resizes its pictures."""
        side: int = self.processor.image_processor.patch_size
        return sum((picture.width // side) * (picture.height // side) for picture in row.pictures)


def _per_slot(prompt: Prompt, picture: Image.Image | PreparedPicture | None) -> tuple[Image.Image | PreparedPicture, ...]:
    """The picture once for each of the prompt's image slots."""
    if picture is None:
        return ()
    return tuple(picture for part in prompt if isinstance(part, ImageSlot))


def _characters(row: EncodedSequence) -> int:
    return len(row.written) + sum(len(part) for part in row.prompt if isinstance(part, str))


def _split(order: Sequence[int], patches: Sequence[int], size: int, most: int) -> Iterator[list[int]]:
    part: list[int] = []
    used = 0
    for i in order:
        if part and (len(part) == size or used + patches[i] > most):
            yield part
            part, used = [], 0
        part.append(i)
        used += patches[i]
    if part:
        yield part
