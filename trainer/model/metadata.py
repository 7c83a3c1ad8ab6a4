"""What a saved embedder is, beside its weights: `embedder.json`, and the fingerprint of both."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Final

from pydantic import BaseModel, ConfigDict, ValidationError

from schemas.errors import InputError
from schemas.os_errors import explained, refused_by_system
from schemas.training import Pooling

METADATA: Final = "embedder.json"


class EmbedderMetadata(BaseModel):
    """The contents of `embedder.json`. They keep a checkpoint from being used with another pooling or prompt set."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: int = 1
    base: str
    revision: str | None
    pool: Pooling
    emb_token: str
    prompts: str
    max_pixels: int | None
    temperature: float
    bidirectional: bool = False
    """Every token attends to all others."""
    merged: bool = False
    """The weights are whole (written by `merge`), not an adapter of `base`."""

    @property
    def writes(self) -> bool:
        """Whether the embedder can write traces; otherwise it embeds every query at once."""
        return self.pool != "mean" and not self.bidirectional

    @classmethod
    def read(cls, directory: Path) -> EmbedderMetadata:
        path = directory / METADATA
        try:
            return cls.model_validate_json(path.read_bytes())
        except OSError as error:
            if (refused := refused_by_system(error)) is not None:
                raise InputError(f"{path} cannot be read: {refused.cause}", refused.remedy) from error
            raise InputError(
                f"{directory} is no checkpoint of this trainer ({path.name}: {explained(error).cause})",
                "name a run's directory (RUN/VARIANT/model is its embedder), or ORG/NAME on the Hub",
            ) from error
        except ValidationError as error:
            raise InputError(f"{path} is damaged: {error.errors()[0]['msg']}", "use another checkpoint of the run") from error

    def write(self, directory: Path) -> None:
        later = {"bidirectional"} if not self.bidirectional else set()  # earlier versions read files without it
        (directory / METADATA).write_text(json.dumps(self.model_dump(exclude=later), indent=1) + "\n", encoding="utf-8")


def fingerprint(directory: Path) -> str:
    """SHA-256 over an embedder's weights and metadata: vectors of different embedders must not be compared."""
    digest = hashlib.sha256()
    for name in [*sorted(path.name for path in directory.glob("*.safetensors")), METADATA]:
        digest.update(name.encode())
        with (directory / name).open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()
