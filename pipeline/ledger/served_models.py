"""What external servers report about the model behind a name, kept beside the answers: a name may later serve another model."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import orjson
from pyarrow import fs

from pipeline.ledger.request_key import Identity
from pipeline.ledger.segment import SegmentStore
from schemas.errors import ConfigError, InputError
from schemas.os_errors import explained


def same_as_before(location: str, who: str, identity: Identity, told: Iterable[str]) -> None:
    """Stores what the servers of `identity` report the first time; later raises ConfigError if they report something else.

    told: the model's path and the name with which it answers. location: the ledger's.
    """
    store, now = SegmentStore(location), sorted(set(told))
    path = store.path(f"served-{hashlib.sha256(identity.prefix).hexdigest()[:16]}.json")
    if not now:
        return
    if store.filesystem.get_file_info(path).type == fs.FileType.File:
        before = _read(store, path)
        if not set(now) <= set(before):
            raise ConfigError(
                f"the {who}'s endpoints serve {identity.name} as {', '.join(now)}; the ledger's answers under that name are of "
                f"{', '.join(before)}",
                f"for another model, set `revision` of {who}.endpoints to a new name (its answers are kept apart); "
                f"if it is the same, remove {path}",
            )
        return
    content = {"model": identity.name, "revision": identity.revision, "told": now}
    with store.filesystem.open_output_stream(f"{path}.tmp") as file:
        file.write(orjson.dumps(content, option=orjson.OPT_INDENT_2))
    store.filesystem.move(f"{path}.tmp", path)


def _read(store: SegmentStore, path: str) -> list[str]:
    try:
        with store.filesystem.open_input_stream(path) as file:
            told: list[str] = [str(name) for name in orjson.loads(file.read())["told"]]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path} is damaged ({error!r})",
            "if the endpoints serve the same model as before, remove it: it is written again",
        ) from error
    except OSError as error:
        cause, remedy = explained(error)
        raise InputError(f"{path} cannot be read: {cause}", remedy) from error
    return told
