"""From queries, candidates and traces to the rows of a forward pass.

A row is a prompt (the student's query or candidate prompt as the chat template writes it) and what the student has written
after it. Its embedding is read at its last position: with `pre` pooling a row ends *before* the embedding token, in the state
that predicts it; with `token` pooling it ends with the token.

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
from schemas.mbeir import Candidate
from schemas.record import EMB_TOKEN
from schemas.training import Pooling
from trainer.data.pixels import PixelScale
from trainer.data.positions import mrope_positions
from trainer.data.tower_plan import TowerPlan

IGNORE: Final = -100
LENGTH_STEP: Final = 16
"""Lengths are padded to multiples: on CPU every new shape costs a compilation of its matrix products."""


class PreparedPicture(NamedTuple):
    """A picture as the image processor gives it: some 1.5 MB where a photograph, decoded, takes 36. Its own size in pixels."""

    inputs: dict[str, Tensor]
    width: int
    height: int


@dataclass(frozen=True, slots=True)
class EncodedSequence:
    """`prompt` with its pictures in order, and `written`: the text after it, without the embedding token.

    name: qid or did, for messages.
    labelled: the row's written text and the embedding token after it are learnt.
    pooled: the row's embedding is used.
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
        where rows have images `image_grid_thw` (images, 3) and `pixel_values`: (patches, channels, values) in uint8 until the
        chunk is moved `to` its device, (patches, values) in float32 there.
    labels: (rows, length); the token that should *follow* each position, IGNORE where nothing is learnt.
    last: (rows,); the position of the embedding.
    places: (rows,); which of the batch's embeddings a row gives, -1 for none.
    names: qid or did of each row.
    learnt: (labelled,); where labels are, in the flat (rows * length).
    tower: what the vision tower is told beforehand (`TowerPlan`). host: the same, of what stays on the CPU: nobody has to wait
        for the GPU to read it.
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
        """`pixels=False` leaves the pixel values behind."""
        inputs = {name: value for name, value in self.inputs.items() if pixels or name != "pixel_values"}
        moved = replace(self, inputs=inputs, host={}).changed(lambda tensor: tensor.to(device, non_blocking=True))
        raw = moved.inputs.get("pixel_values")
        if raw is not None and raw.dtype == torch.uint8 and self.scale is not None:
            moved.inputs["pixel_values"] = self.scale.normalised(raw)
        return replace(moved, host=self.host)

    def changed(self, change: Callable[[Any], Any]) -> MicroBatch:
        """With every tensor changed."""
        dicts = [{name: change(value) for name, value in one.items()} for one in (self.inputs, self.tower, self.host)]
        flat = {name: change(getattr(self, name)) for name in ("labels", "last", "places", "learnt")}
        return replace(self, inputs=dicts[0], tower=dicts[1], host=dicts[2], **flat)

    def __len__(self) -> int:
        return len(self.names)


def shows_image(candidate: Candidate) -> bool:
    return bool(candidate.img_path) and candidate.modality.has_image


def text_of(candidate: Candidate, max_chars: int) -> str:
    """The text of it that the model reads; "" for none."""
    return read_text(candidate.txt, max_chars) if candidate.modality.has_text else ""


def read_text(text: str | None, max_chars: int) -> str:
    """A candidate's text as the model reads it: M-BEIR's normal form, cut after `max_chars` characters."""
    return candidate_text(text)[:max_chars]


class SequenceEncoder:
    """Tokenises rows and prepares their images for one checkpoint. Picklable."""

    def __init__(
        self, processor: Any, prompts: PromptSet, pool: Pooling, emb_id: int, *, tower: TowerPlan | None = None
    ) -> None:
        self.processor, self.prompts, self.pool, self.emb_id = processor, prompts, pool, emb_id
        self.tokenizer = processor.tokenizer
        self.tower, self.scale = tower, PixelScale.of(processor.image_processor)

    def query(
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
        return EncodedSequence(name, prompt, _pictures(prompt, picture), written, **flags)

    def prepared(self, picture: Image.Image) -> PreparedPicture:
        """Gives the decoded picture up at once: for those who hold many rows."""
        return PreparedPicture(self._visual([picture]), picture.width, picture.height)

    def candidate(self, name: str, text: str | None, picture: Image.Image | PreparedPicture | None) -> EncodedSequence:
        prompt = self.prompts.render("student_candidate", candidate_text=text or "", has_image=picture is not None)
        return EncodedSequence(name, prompt, _pictures(prompt, picture))

    def candidate_of(
        self, candidate: Candidate, images: ImageStore, *, max_chars: int, prepare: bool = False
    ) -> EncodedSequence:
        """As it is learnt and embedded. Raises ImageProblem for a picture that cannot be used. `prepare`: see `prepared`."""
        picture = images.open(candidate.img_path or "") if shows_image(candidate) else None
        shown = self.prepared(picture) if prepare and picture is not None else picture
        return self.candidate(candidate.did, text_of(candidate, max_chars), shown)

    def written_ids(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=False).input_ids if text else []
        return ids

    def chunk(self, rows: Sequence[EncodedSequence], places: Sequence[int] = (), *, prompts_only: bool = False) -> MicroBatch:
        """One forward pass. `prompts_only`: rows end after their prompts whatever the pooling (for generation)."""
        pictures = [picture for row in rows for picture in row.pictures]
        visual: dict[str, Tensor] = self._visual(pictures) if pictures else {}
        merge = self.processor.image_processor.merge_size**2
        tokens = iter((visual["image_grid_thw"].prod(-1) // merge).tolist() if pictures else [])
        sequences, starts = [], []
        for row in rows:
            prompt = self._prompt_ids(row, tokens)
            written = [] if prompts_only else self.written_ids(row.written)
            ending = [self.emb_id] if self.pool == "token" and not prompts_only else []
            sequences.append(prompt + written + ending)
            starts.append(len(prompt))
        length = max(map(len, sequences))
        length += -length % LENGTH_STEP
        ids = torch.full((len(rows), length), self.tokenizer.pad_token_id or 0)
        mask = torch.zeros_like(ids)
        labels = torch.full_like(ids, IGNORE)
        for i, (row, sequence, start) in enumerate(zip(rows, sequences, starts, strict=True)):
            ids[i, : len(sequence)] = torch.tensor(sequence)
            mask[i, : len(sequence)] = 1
            if row.labelled:
                after = sequence[start:] if self.pool == "token" else [*sequence[start:], self.emb_id]
                labels[i, start - 1 : start - 1 + len(after)] = torch.tensor(after)
        visible = (ids == self.processor.image_token_id).int()
        inputs: dict[str, Tensor] = {
            "input_ids": ids,
            "attention_mask": mask,
            "mm_token_type_ids": visible,
            "position_ids": mrope_positions(
                visible, mask, visual.get("image_grid_thw"), self.processor.image_processor.merge_size
            ),
            **{name: visual[name] for name in ("pixel_values", "image_grid_thw") if name in visual},
        }
        given = torch.tensor(list(places) if places else list(range(len(rows))))
        learnt = (labels != IGNORE).flatten().nonzero().flatten()
        chunk = MicroBatch(inputs, labels, mask.sum(1) - 1, given, [row.name for row in rows], learnt, scale=self.scale)
        if pictures and self.tower is not None:
            chunk.tower, lengths = self.tower.place(visual["image_grid_thw"])
            chunk.host = {"image_grid_thw": visual["image_grid_thw"], **lengths}
        return chunk

    def _visual(self, pictures: Sequence[Image.Image | PreparedPicture]) -> dict[str, Tensor]:
        if any(isinstance(picture, PreparedPicture) for picture in pictures):
            each = [one.inputs if isinstance(one, PreparedPicture) else self._visual([one]) for one in pictures]
            return {name: torch.cat([inputs[name] for inputs in each]) for name in each[0]}
        processor = self.processor.image_processor
        decoded = [picture for picture in pictures if isinstance(picture, Image.Image)]
        if self.scale is None:
            return dict(processor(images=decoded, return_tensors="pt"))
        return self.scale.patches(processor, decoded)

    def chunks(self, rows: Sequence[EncodedSequence], size: int, patches: int) -> list[MicroBatch]:
        """All rows in chunks of at most `size` rows and `patches` image patches, rows of similar length together."""
        places, next_place = [], 0
        for row in rows:
            places.append(next_place if row.pooled else -1)
            next_place += row.pooled
        order = sorted(range(len(rows)), key=lambda i: (len(rows[i].pictures), _characters(rows[i]), i))
        return [
            self.chunk([rows[i] for i in part], [places[i] for i in part])
            for part in _parts(order, [self.patches(row) for row in rows], size, patches)
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

    def patches(self, row: EncodedSequence) -> int:
        side: int = self.processor.image_processor.patch_size
        return sum((picture.width // side) * (picture.height // side) for picture in row.pictures)


def _pictures(prompt: Prompt, picture: Image.Image | PreparedPicture | None) -> tuple[Image.Image | PreparedPicture, ...]:
    if picture is None:
        return ()
    return tuple(picture for part in prompt if isinstance(part, ImageSlot))


def _characters(row: EncodedSequence) -> int:
    return len(row.written) + sum(len(part) for part in row.prompt if isinstance(part, str))


def _parts(order: Sequence[int], patches: Sequence[int], size: int, most: int) -> Iterator[list[int]]:
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


def student_text(target: str) -> str:
    """A record's `target` without the embedding token: what the student writes before it."""
    return target.removesuffix(EMB_TOKEN)
