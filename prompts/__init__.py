"""Prompts of teachers and students: sets of Jinja2 templates.

A set is a directory of templates: ``full`` for real teachers, ``pocket`` for the tiny one, or your own. Templates run in a
sandbox, cannot reach outside their set, and fail on undefined variables. The text of a query is data and never template source;
markup in it that a model could take for its own is defused first.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import MutableMapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

from jinja2 import FileSystemLoader, StrictUndefined, TemplateError, TemplateNotFound, UndefinedError, meta
from jinja2.sandbox import ImmutableSandboxedEnvironment

from prompts.printed_variables import decisive_variables
from schemas.errors import ConfigError

BUILT_IN: Final = ("full", "pocket")
_DIRECTORY: Final = Path(__file__).parent
_CONTROL: Final = re.compile(r"[\x00-\x08\x0b-\x1f]")
_OWN_TAGS: Final = ("reasoning", "answer", "think")
_MEDIA_TAGS: Final = ("image", "img", "video", "audio", "img_context", "image_soft_token", "start_of_image", "end_of_image")
"""Placeholders for images in the text of a prompt: LLaVA and the training projects write <image>, InternVL <img>,
<IMG_CONTEXT> and </img>, Gemma <start_of_image>. One in a query's own text would count as another image."""
_TURN_TAGS: Final = ("s", "bos", "eos", "pad", "unk", "start_of_turn", "end_of_turn", "tool_call", "tool_response")
_GROUNDING_TAGS: Final = ("box", "bbox", "ref", "quad", "ref-object", "cot-process", "start-image")
"""Tags of InternVL and ms-swift."""
_TAGS: Final = "|".join((*_OWN_TAGS, *_MEDIA_TAGS, *_TURN_TAGS, *_GROUNDING_TAGS))
_MARKUP: Final = re.compile(rf"<(\|[^<>|]{{1,40}}\||/?(?:{_TAGS})\s*)>", re.IGNORECASE)
_BRACKETS: Final = re.compile(r"\[(/?INST|/?IMG|IMG_BREAK|IMG_END)\]")
"""Tags of Mistral and Pixtral."""
_JINJA: Final = re.compile(r"\{\{.*?\}\}|\{%.*?%\}|\{#.*?#\}", re.DOTALL)
_IMAGE: Final = re.compile("\x00image:([a-z_]+)\x00")
_VARIABLE: Final = re.compile("\x00variable:([A-Za-z_0-9]+)\x00")
_SKELETONS_KEPT: Final = 1024


@dataclass(frozen=True, slots=True)
class ImageSlot:
    """The place of an image in a prompt; `role` says which image: ``query``, ``target`` or ``candidate``."""

    role: str


Part = str | ImageSlot
Prompt = tuple[Part, ...]


@lru_cache(maxsize=1024)  # a query's texts stand in each of its prompts
def defused(text: str) -> str:
    """Returns `text` without control characters, and with tags, special tokens and image placeholders in other brackets:
    ``‹|im_start|›``, ``‹image›``.

    People can still read them, but no tokenizer or parser takes them for its own.
    """
    text = _CONTROL.sub("", text)
    if "<" in text:
        text = _MARKUP.sub(lambda match: f"‹{match[1]}›", text)
    return _BRACKETS.sub(lambda match: f"‹{match[1]}›", text) if "[" in text else text


class _Skeleton:
    """A rendered prompt in which the values of printed variables are still missing."""

    def __init__(self, text: str) -> None:
        pieces = _IMAGE.split(text)  # text, role, text, role, …, text
        self._parts: list[Part] = [ImageSlot(piece) if i % 2 else self._format(piece) for i, piece in enumerate(pieces)]

    @staticmethod
    def _format(text: str) -> str:
        """A format of %: Python fills it from a dict about twice as fast as from a list of the values."""
        return _VARIABLE.sub(r"%(\1)s", text.replace("%", "%%"))

    def filled(self, values: dict[str, Any]) -> Prompt:
        found: list[Part] = []
        for part in self._parts:
            if isinstance(part, ImageSlot):
                found.append(part)
            elif (text := part % values) and not text.isspace():
                found.append(text)
        return tuple(found)


def _join(parts: Prompt) -> str:
    return "\n".join(defused(part) if isinstance(part, str) else f"\x00image:{part.role}\x00" for part in parts)


class _Sandbox(ImmutableSandboxedEnvironment):
    """A sandbox that gives templates their globals as a plain dict.

    Each rendering copies them, and jinja's own chain of maps takes ten times as long to copy. Nothing adds to a template's
    globals after it is loaded.
    """

    def make_globals(self, d: MutableMapping[str, Any] | None) -> MutableMapping[str, Any]:
        return {**self.globals, **(d or {})}


class PromptSet:
    """The templates of one directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._environment = _Sandbox(
            loader=FileSystemLoader(directory, followlinks=False),
            undefined=StrictUndefined,
            autoescape=False,  # this is text for a model, not HTML
            trim_blocks=True,
            lstrip_blocks=True,
            keep_trailing_newline=False,
            auto_reload=False,  # otherwise each prompt would stat the file; a build loads a set once
        )
        self._environment.globals["image"] = lambda role: f"\x00image:{role}\x00"
        self._decisive: dict[str, frozenset[str] | None] = {}
        self._skeletons: dict[tuple[Any, ...], _Skeleton] = {}

    @classmethod
    def load(cls, name: str | Path) -> PromptSet:
        """Loads a built-in set by name, or the set in a directory. NAME/base: its prompts for an untrained model."""
        directory = _DIRECTORY / name if str(name).removesuffix("/base") in BUILT_IN else Path(name)
        if not any(directory.glob("*.jinja")):
            raise ConfigError(
                f"no prompt set {str(name)!r}", f"use {' or '.join(BUILT_IN)}, or a directory with *.jinja templates"
            )
        return cls(directory)

    def render(self, template: str, **variables: str | bool | Prompt | None) -> Prompt:
        """Renders a template (its name without suffix) into parts: texts, and slots for images.

        A variable may itself be a sequence of texts and slots; each gets its own line.
        """
        if template not in self._decisive:
            self._decisive[template] = self._decisive_variables(template)
        decisive = self._decisive[template]
        safe: dict[str, Any] = {}
        shape: list[Any] = []
        printed = decisive is not None
        for name, value in variables.items():
            if isinstance(value, str):
                safe[name] = text = defused(value)
                shape.append(... if text else "")
                if decisive and text and name in decisive:
                    printed = False
            elif isinstance(value, tuple):
                safe[name], printed = _join(value), False
            else:
                safe[name] = value
                shape.append(value)
        if not printed:
            return _Skeleton(self._rendered(template, safe)).filled(safe)
        known = (template, *variables, *shape)
        skeleton = self._skeletons.get(known)
        if skeleton is None:
            if len(self._skeletons) >= _SKELETONS_KEPT:
                self._skeletons.clear()
            marked = {
                name: f"\x00variable:{name}\x00" if isinstance(value, str) and value else value for name, value in safe.items()
            }
            skeleton = self._skeletons[known] = _Skeleton(self._rendered(template, marked))
        return skeleton.filled(safe)

    def _decisive_variables(self, template: str) -> frozenset[str] | None:
        """Returns the decisive variables; None for a template that cannot be parsed (rendering it raises the error)."""
        try:
            return decisive_variables(
                self._environment.parse(self._source(name)) for name in self._closure(f"{template}.jinja")
            )
        except (ConfigError, TemplateError):
            return None

    def _rendered(self, template: str, safe: dict[str, Any]) -> str:
        try:
            return self._environment.get_template(f"{template}.jinja").render(safe)
        except TemplateNotFound as error:
            raise ConfigError(
                f"{self.directory} has no template {error.name}", "add it, or use a built-in prompt set"
            ) from error
        except UndefinedError as error:
            raise ConfigError(
                f"{self.directory / template}.jinja: {error.message}", f"the variables given are {', '.join(sorted(safe))}"
            ) from error
        except TemplateError as error:
            raise ConfigError(f"{self.directory / template}.jinja: {error.message}", "correct the template") from error

    def sha256(self, template: str) -> str:
        """Returns the digest of a template and everything that it includes, for the provenance of a record."""
        digest = hashlib.sha256()
        for name in sorted(self._closure(f"{template}.jinja")):
            digest.update(name.encode() + b"\0" + self._source(name).encode() + b"\0")
        return digest.hexdigest()

    def own_text(self, template: str) -> str:
        """Returns the own words of a template and its includes, without markup and variables."""
        return "\n".join(_JINJA.sub("\n", self._source(name)) for name in sorted(self._closure(f"{template}.jinja")))

    def _closure(self, name: str) -> set[str]:
        found, waiting = set(), [name]
        while waiting:
            current = waiting.pop()
            if current not in found:
                found.add(current)
                tree = self._environment.parse(self._source(current))
                waiting += [other for other in meta.find_referenced_templates(tree) if other is not None]
        return found

    def _source(self, name: str) -> str:
        loader = self._environment.loader
        assert loader is not None
        try:
            return loader.get_source(self._environment, name)[0]
        except TemplateNotFound as error:
            raise ConfigError(
                f"{self.directory} has no template {error.name}", "add it, or use a built-in prompt set"
            ) from error
