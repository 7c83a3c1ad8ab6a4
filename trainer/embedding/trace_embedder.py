"""The public embedder: texts and pictures to vectors, computed as in training, evaluation and search.

    embedder = TraceEmbedder.load("build/pocket-train")
    one, = embedder.embed_queries([("make the disc black", "scene.jpg")], instruction="Show the scene after the change.")
    vectors = embedder.embed_candidates(["A red cube.", Path("cube.jpg")])
    scores = vectors @ one.vector.numpy()

A query or candidate is a text (`str`), a picture (PIL image or `Path`), or both: `(text, picture)`, where the picture may also
be a path as `str`. A query with several pictures is a list of texts and pictures in order. Pictures are decoded as in training
(`pipeline.mbeir.image_conversion`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, Self, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from pipeline.mbeir.image_store import MAX_RATIO, ImageProblem, opened_picture
from pipeline.mbeir.stores import plain_store
from schemas.errors import ConfigError, InputError
from schemas.record import ImageReason
from schemas.training import Engine, RouteChoice, TrainConfig
from trainer.data.encoding import EncodedSequence, PreparedPicture, read_text
from trainer.embedding.files import refuse_not_finite
from trainer.embedding.queries import WINDOW
from trainer.embedding.query_embedding import QueryEmbedding, QueryEngine
from trainer.embedding.transformers_engine import AdaptiveEmbedder
from trainer.embedding.vllm_engine import VllmEngine
from trainer.embedding.workers import EmbedderSpec
from trainer.model.embedder import Embedder
from trainer.model.location import is_checkpoint, load_settings, locate, model_directory
from trainer.model.metadata import fingerprint

DEFAULT_INSTRUCTION: Final = "Find what the query describes."

Picture = Image.Image | Path | str
TextOrImage = str | Image.Image | Path | tuple[str | None, Picture | None]
"""A text, a picture, or both."""
QueryContent = TextOrImage | list[str | Image.Image | Path]
"""A query may also be a list of texts and pictures, in the order in which they are read."""


class TraceEmbedder:
    """A trained embedder with its settings. Not thread-safe."""

    def __init__(
        self, embedder: Embedder, settings: TrainConfig, *, sha256: str | None = None, engine: VllmEngine | None = None
    ) -> None:
        """`sha256`: the fingerprint of the weights, by which an index recognises the embedder that made it.

        engine: embeds with vLLM instead of with `embedder`, which may then be without weights.
        """
        self.embedder, self.settings, self.sha256, self.engine = embedder, settings, sha256, engine
        self._adaptive: QueryEngine = engine or AdaptiveEmbedder(embedder, settings.adaptive)

    @classmethod
    def load(
        cls,
        place: str | Path,
        variant: str = "trace",
        *,
        device: str | None = None,
        overrides: Sequence[str] = (),
        engine: Engine | None = "transformers",
    ) -> Self:
        """Loads an embedder for inference, with the adapter folded into the weights.

        place: a run's directory or config, a checkpoint's directory, merged weights, or ORG/NAME on the Hub.
        variant: which embedder of a run: trace, direct or always-reason. Ignored for a checkpoint.
        device: auto, cpu or cuda [default: the settings'].
        overrides: settings as ``key.sub=value``, e.g. ``adaptive.max_new_tokens=64``, ``model.base=DIR``.
        engine: what embeds; None for `adaptive.engine` of the settings. vLLM takes longer to start and is ended by `close`.

        Raises InputError if there is no such embedder, or it is damaged; ConfigError for settings that do not fit; EngineError
        if vLLM does not start.
        """
        path = locate(Path(place))
        given = [*overrides, *([f"device={device}"] if device is not None else [])]
        if is_checkpoint(path) and not any(override.startswith("data.mbeir=") for override in given):
            given.append(f"data.mbeir={path}")  # the settings require it, but nothing is read from it here
        elif not path.exists():
            raise InputError(f"{path} does not exist", "name a run, a checkpoint's directory, or ORG/NAME on the Hub")
        settings = load_settings(path, given)
        model = model_directory(settings, path, variant)
        spec, sha256 = EmbedderSpec(settings, model), fingerprint(model)
        if (engine or settings.adaptive.engine) == "vllm":
            shapes, started = spec.start_engine()
            return cls(shapes, settings, sha256=sha256, engine=started)
        return cls(spec.load(), settings, sha256=sha256)

    def close(self) -> None:
        """Ends the processes of its engine, if it has any. May be called again."""
        if self.engine is not None:
            self.engine.close()

    @property
    def dim(self) -> int:
        """Length of the vectors."""
        return int(self.embedder.model.config.get_text_config().hidden_size)

    def embed_queries(
        self,
        queries: Sequence[QueryContent],
        *,
        instruction: str | Sequence[str] = DEFAULT_INSTRUCTION,
        route: RouteChoice = "learned",
    ) -> list[QueryEmbedding]:
        """Embeddings in the order of `queries`. There may be any number; the pictures of 1,024 are in memory at once.

        instruction: what to look for; one for all queries, or a list with one for each.
        route: learned (the embedder decides which queries reason), always-direct or always-reason.

        A `QueryEmbedding` has `vector` ((dim,), float32, unit length, on CPU), `reasoned`, `trace`, `p_direct`, `confidence`,
        `fell_back`, `tokens` and `seconds`.

        Raises InputError for an empty query, a picture that cannot be used or a vector that is not finite, and ConfigError for
        an unknown route.
        """
        if route not in get_args(RouteChoice) or route == "given":
            raise ConfigError(f"route {route}: unknown", "learned, always-direct or always-reason")
        instructions = one_each(instruction, len(queries))
        embeddings: list[QueryEmbedding] = []
        for start in range(0, len(queries), WINDOW):
            sequences = [
                self.encode_query(f"query {at}", queries[at], instructions[at])
                for at in range(start, min(start + WINDOW, len(queries)))
            ]
            # cloned: a view of a batch's tensor would keep the whole batch in memory
            made = [one.fall_back(self.settings.adaptive.fallback) for one in self._adaptive.embed(sequences, route=route)]
            embeddings += [
                one._replace(vector=one.vector.clone(), bypass=one.bypass.clone() if one.bypass is not None else None)
                for one in made
            ]
        _check_finite("query", [bool(torch.isfinite(one.vector).all()) for one in embeddings])
        return embeddings

    def embed_candidates(self, candidates: Sequence[TextOrImage]) -> NDArray[np.float32]:
        """(n, dim), float32, unit length, in the order of `candidates`. Texts are truncated as in training.

        Raises InputError for an empty candidate, a picture that cannot be used or a vector that is not finite.
        """
        return self.embed_counted(candidates)[0]

    @torch.inference_mode()
    def embed_counted(self, candidates: Sequence[TextOrImage]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """`embed_candidates`, and the tokens of each candidate."""
        vectors_CD, tokens_C = np.zeros((len(candidates), self.dim), np.float32), np.zeros(len(candidates), np.int64)
        for start in range(0, len(candidates), WINDOW):
            window = range(start, min(start + WINDOW, len(candidates)))
            sequences = [self.encode_candidate(f"candidate {at}", candidates[at]) for at in window]
            for places_B, vectors_BD, tokens_B in self._embed_sequences(sequences):
                vectors_CD[start + places_B] = vectors_BD.float().cpu().numpy()
                tokens_C[start + places_B] = tokens_B
        _check_finite("candidate", [bool(np.isfinite(vector_D).all()) for vector_D in vectors_CD])
        return vectors_CD, tokens_C

    def _embed_sequences(
        self, sequences: Sequence[EncodedSequence]
    ) -> Iterator[tuple[NDArray[np.int64], Tensor, NDArray[np.int64]]]:
        """(places in `sequences`, vectors, tokens), as they are done."""
        if self.engine is not None:
            for place, one in self.engine.stream_inputs(self.engine.make_inputs(sequences)):
                yield np.array([place]), one.vector[None], np.array([one.prompt_tokens])
            return
        embedder, size = self.embedder.eval(), self.settings.evaluation.candidate_batch_size
        for chunk in self._adaptive.encoder.make_chunks(sequences, size, 1 << 20):
            vectors_BD, _ = embedder(chunk.to(embedder.device), labelled=False)
            yield chunk.places.numpy(), vectors_BD, chunk.last.numpy() + 1

    def encode_query(self, name: str, query: QueryContent, instruction: str) -> EncodedSequence:
        """What the engine reads of a query. `name`: for messages."""
        if isinstance(query, list):
            return self._adaptive.encoder.encode_interleaved(name, instruction, self._prepare_parts(name, query))
        text, picture = _split(name, query)
        return self._adaptive.encoder.encode_query(name, instruction, text, self._prepare(picture))

    def encode_candidate(self, name: str, candidate: TextOrImage) -> EncodedSequence:
        """What the engine reads of a candidate. `name`: for messages."""
        text, picture = _split(name, candidate)
        cut = read_text(text, self.settings.data.max_candidate_chars) if text else ""
        return self._adaptive.encoder.encode_candidate(name, cut, self._prepare(picture))

    def _prepare_parts(self, name: str, parts: list[str | Image.Image | Path]) -> list[str | PreparedPicture]:
        if not parts:
            raise InputError(f"{name} is empty", "give texts and pictures in their order")
        pairs = [(part, None if isinstance(part, str) else self._prepare(_split(name, part)[1])) for part in parts]
        return [picture if picture is not None else str(part) for part, picture in pairs]

    def _prepare(self, picture: Image.Image | None) -> PreparedPicture | None:
        return self._adaptive.encoder.prepare(picture) if picture is not None else None


def one_each(instruction: str | Sequence[str], count: int) -> list[str]:
    """An instruction for each of so many queries, from one for all or one each. Raises InputError for another number."""
    instructions = [instruction] * count if isinstance(instruction, str) else list(instruction)
    if len(instructions) != count:
        raise InputError(f"{len(instructions):,} instructions for {count:,} queries", "give one, or one for each")
    return instructions


def _split(name: str, given: TextOrImage) -> tuple[str | None, Image.Image | None]:
    """(text, decoded picture)."""
    text, picture = given if isinstance(given, tuple) else (given, None) if isinstance(given, str) else (None, given)
    if picture is None:
        if not text or not text.strip():
            raise InputError(f"{name} has neither text nor picture", "give a text, a picture, or (text, picture)")
        return text, None
    try:
        return text, _decode(name, picture)
    except ImageProblem as problem:
        detail = "no such file" if problem.reason is ImageReason.MISSING else problem.detail
        remedy = "give a PIL image or the path of a JPEG, PNG, WEBP, GIF or BMP file that opens"
        raise InputError(f"{name}, image {problem.path}: {detail}", remedy) from problem


def _decode(name: str, picture: Picture) -> Image.Image:
    if isinstance(picture, Image.Image):
        return opened_picture(picture, f"of {name}", max_ratio=MAX_RATIO)
    file = Path(picture).resolve()  # the caller's own file: links may lead anywhere
    return plain_store(file.parent, max_ratio=MAX_RATIO).open(file.name)


def _check_finite(kind: str, finite: Sequence[bool]) -> None:
    wrong = np.flatnonzero(~np.asarray(finite, np.bool_))
    if len(wrong):
        refuse_not_finite("the embedder", wrong, np.arange(len(finite)), lambda at: f"{kind} {at}")
