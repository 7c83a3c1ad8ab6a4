"""Encodes queries, candidates and traces as the sequences of a forward pass.

A sequence is a prompt (the student's query or candidate prompt in the chat template) and the text that the student wrote after
it. Its embedding is the state at its last position: with `pre` pooling a sequence ends *before* the embedding token, at the
state that predicts it; with `token` pooling it ends with the token.

    query      prompt + trace           labels: trace + emb token      embedding: last position
    candidate  prompt                   no labels                      embedding: last position
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from pipeline.mbeir.image_store import ImageStore
from pipeline.mbeir.instructions import candidate_text
from prompts import ImageSlot, Prompt, PromptSet
from schemas.content import ContentPart
from schemas.mbeir import Candidate
from schemas.training import Pooling
from trainer.data.micro_batch import IGNORE, MicroBatch
from trainer.data.positions import compute_mrope_positions
from trainer.data.raw_pixels import PixelScale
from trainer.data.tower_plan import TowerPlan

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
    pooled: whether the sequence's embedding is used.
    at_prompt: with `pre` pooling, its embedding is the state at the prompt's end: the one of a bypass, whatever is written.
    """

    name: str
    prompt: Prompt
    pictures: tuple[Image.Image | PreparedPicture, ...]
    written: str = ""
    labelled: bool = False
    pooled: bool = True
    at_prompt: bool = False


def shows_image(candidate: Candidate) -> bool:
    return bool(candidate.img_path) and candidate.modality.has_image


def text_of(candidate: Candidate, max_chars: int) -> str:
    """The candidate's text as the model reads it; "" if its modality has none."""
    return read_text(candidate.txt, max_chars) if candidate.modality.has_text else ""


def read_text(text: str | None, max_chars: int) -> str:
    """M-BEIR's normal form of a text, truncated to `max_chars` characters."""
    return candidate_text(text)[:max_chars]


class SequenceEncoder:
    """Makes the sequences and micro-batches of one checkpoint: tokenises texts and prepares images. Picklable."""

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
        """Spares a caller that holds many sequences from keeping the decoded pictures."""
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
        self, sequences: Sequence[EncodedSequence], places: Sequence[int] = (), *, prompts_only: bool = False
    ) -> MicroBatch:
        """One forward pass. `prompts_only`: end each sequence after its prompt, whatever the pooling (for generation)."""
        pictures = [picture for sequence in sequences for picture in sequence.pictures]
        visual: dict[str, Tensor] = self._process_images(pictures) if pictures else {}
        merge = self.processor.image_processor.merge_size**2
        tokens = iter((visual["image_grid_thw"].prod(-1) // merge).tolist() if pictures else [])
        token_ids, starts = [], []
        for sequence in sequences:
            prompt = self._prompt_ids(sequence, tokens)
            written = [] if prompts_only else self.tokenise(sequence.written)
            ending = [self.emb_id] if self.pool == "token" and not prompts_only else []
            token_ids.append(prompt + written + ending)
            starts.append(len(prompt))
        ids_BL, mask_BL, labels_BL = self._pad(sequences, token_ids, starts)
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
        batch = MicroBatch(
            inputs=inputs,
            labels=labels_BL,
            last=torch.tensor(
                [
                    (start if sequence.at_prompt else len(ids)) - 1
                    for sequence, ids, start in zip(sequences, token_ids, starts, strict=True)
                ]
            ),
            places=torch.tensor(list(places) if places else list(range(len(sequences)))),
            names=[sequence.name for sequence in sequences],
            learnt=(labels_BL != IGNORE).flatten().nonzero().flatten(),
            scale=self.scale,
        )
        if pictures and self.tower is not None:
            batch.tower, lengths = self.tower.place(visual["image_grid_thw"])
            batch.host = {"image_grid_thw": visual["image_grid_thw"], **lengths}
        return batch

    def _pad(
        self, sequences: Sequence[EncodedSequence], token_ids: Sequence[list[int]], starts: Sequence[int]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(ids, mask, labels), each (sequences, length). starts: where the text after the prompt begins."""
        length = max(map(len, token_ids))
        length += -length % LENGTH_STEP
        ids_BL = torch.full((len(sequences), length), self.tokenizer.pad_token_id or 0)
        mask_BL = torch.zeros_like(ids_BL)
        labels_BL = torch.full_like(ids_BL, IGNORE)
        for i, (sequence, ids, start) in enumerate(zip(sequences, token_ids, starts, strict=True)):
            ids_BL[i, : len(ids)] = torch.tensor(ids)
            mask_BL[i, : len(ids)] = 1
            if sequence.labelled:
                labels = ids[start:] if self.pool == "token" else [*ids[start:], self.emb_id]
                labels_BL[i, start - 1 : start - 1 + len(labels)] = torch.tensor(labels)
        return ids_BL, mask_BL, labels_BL

    def _process_images(self, pictures: Sequence[Image.Image | PreparedPicture]) -> dict[str, Tensor]:
        if any(isinstance(picture, PreparedPicture) for picture in pictures):
            each = [
                picture.inputs if isinstance(picture, PreparedPicture) else self._process_images([picture])
                for picture in pictures
            ]
            return {name: torch.cat([inputs[name] for inputs in each]) for name in each[0]}
        processor = self.processor.image_processor
        decoded = [picture for picture in pictures if isinstance(picture, Image.Image)]
        if self.scale is None:
            return dict(processor(images=decoded, return_tensors="pt"))
        return self.scale.make_patches(processor, decoded)

    def make_chunks(self, sequences: Sequence[EncodedSequence], size: int, patches: int) -> list[MicroBatch]:
        """Micro-batches of at most `size` sequences and `patches` image patches, with sequences of similar length together."""
        places, next_place = [], 0
        for sequence in sequences:
            places.append(next_place if sequence.pooled else -1)
            next_place += sequence.pooled
        order = sorted(range(len(sequences)), key=lambda i: (len(sequences[i].pictures), _characters(sequences[i]), i))
        return [
            self.make_chunk([sequences[i] for i in part], [places[i] for i in part])
            for part in _pack(order, [self.count_patches(sequence) for sequence in sequences], size, patches)
        ]

    def _prompt_ids(self, sequence: EncodedSequence, image_tokens: Iterator[int]) -> list[int]:
        content = [
            {"type": "image"} if isinstance(part, ImageSlot) else {"type": "text", "text": part} for part in sequence.prompt
        ]
        text: str = self.processor.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
        )
        token = self.processor.image_token
        first, *others = text.split(token)
        text = first + "".join(token * next(image_tokens) + piece for piece in others)
        ids: list[int] = self.tokenizer(text, add_special_tokens=False).input_ids
        return ids

    def count_patches(self, sequence: EncodedSequence) -> int:
        """Image patches of the sequence, before the image processor resizes its pictures."""
        side: int = self.processor.image_processor.patch_size
        return sum((picture.width // side) * (picture.height // side) for picture in sequence.pictures)


def _per_slot(prompt: Prompt, picture: Image.Image | PreparedPicture | None) -> tuple[Image.Image | PreparedPicture, ...]:
    """The picture once for each of the prompt's image slots."""
    if picture is None:
        return ()
    return tuple(picture for part in prompt if isinstance(part, ImageSlot))


def _characters(sequence: EncodedSequence) -> int:
    return len(sequence.written) + sum(len(part) for part in sequence.prompt if isinstance(part, str))


def _pack(order: Sequence[int], patches: Sequence[int], size: int, most: int) -> Iterator[list[int]]:
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
