"""Uploads files as a Hub repository, in commits that can be interrupted at any point and resumed.

Files that are already in the repository with the same content are not sent again. Large files go first, several per commit. The
last commit adds the small files that describe the repository and deletes what no longer belongs to it. So a repository is
either unchanged, or incomplete and without its new manifest, or complete."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, constants, get_session, get_token
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    HFValidationError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.file_download import hf_hub_url
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import build_hf_headers, hf_raise_for_status

from schemas.errors import CotError
from schemas.os_errors import refused_by_system

Kind = Literal["dataset", "model"]

_HTTPError = HfHubHTTPError.__bases__[0]
"""The base class of the Hub client's HTTP library, which includes refused connections and time-outs."""

_FILES_PER_COMMIT: Final = 25
_BYTES_PER_COMMIT: Final = 5 << 30
_HUB_OWNED: Final = frozenset({".gitattributes"})
"""Created by the Hub; never uploaded or deleted."""


class PushError(CotError):
    """A push that cannot start or finish."""


class Unreachable(PushError):
    """The Hub does not answer."""


@dataclass(frozen=True, slots=True)
class Upload:
    """A file by its path in the repository: bytes, or a local file."""

    path: str
    content: bytes | Path

    @property
    def size(self) -> int:
        return self.content.stat().st_size if isinstance(self.content, Path) else len(self.content)

    def sha256(self) -> str:
        with self._opened() as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def git_blob(self) -> str:
        """SHA-1 as git names a blob of this content."""
        digest = hashlib.sha1(b"blob %d\0" % self.size, usedforsecurity=False)
        with self._opened() as file:
            while part := file.read(1 << 20):
                digest.update(part)
        return digest.hexdigest()

    def _opened(self) -> Any:
        import io  # noqa: PLC0415

        return self.content.open("rb") if isinstance(self.content, Path) else io.BytesIO(self.content)


@dataclass(frozen=True, slots=True)
class Plan:
    """What a push would do. `last`: in the final commit, with the deletions."""

    repo: str
    kind: Kind
    revision: str
    exists: bool
    large: Sequence[Upload]
    last: Sequence[Upload]
    delete: Sequence[str]
    unchanged: int

    @property
    def nothing(self) -> bool:
        return not (self.large or self.last or self.delete)

    @property
    def size(self) -> int:
        return sum(upload.size for upload in (*self.large, *self.last))


class Target:
    """A repository on the Hub (or whatever speaks its protocol at HF_ENDPOINT)."""

    def __init__(self, repo: str, kind: Kind, revision: str | None = None) -> None:
        self.repo, self.kind, self.revision = repo, kind, revision or "main"
        self.api = HfApi(library_name="mbeir-cot")

    def reach(self, timeout_s: float = 5.0) -> None:
        """Raises Unreachable within seconds; the Hub's own client would retry for long."""
        why = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else ""
        try:
            if not why:
                get_session().head(constants.ENDPOINT, timeout=timeout_s, follow_redirects=False)
        except (_HTTPError, OSError, ValueError) as error:
            why = f"{type(error).__name__}: {_clean(str(error))}"
        if why:
            remedy = "unset it" if constants.HF_HUB_OFFLINE else "check the network, its proxy, and HF_ENDPOINT"
            raise Unreachable(f"{constants.ENDPOINT} cannot be reached ({why}); nothing was sent", remedy)

    def content(self, path: str) -> bytes | None:
        """A small file of the repository at the revision; None if there is no such file or revision."""
        with understood(self.repo):
            url = hf_hub_url(self.repo, path, repo_type=self.kind, revision=self.revision)
            answer = get_session().get(url, headers=build_hf_headers(), follow_redirects=True)
            try:
                hf_raise_for_status(answer)
            except (EntryNotFoundError, RevisionNotFoundError):
                return None
            return bytes(answer.content)

    def unseen(self, uploads: Sequence[Upload], *, final: Sequence[str]) -> Plan:
        """The plan as if the repository were empty, for when it cannot be read."""
        large, last = [u for u in uploads if u.path not in final], [u for u in uploads if u.path in final]
        return Plan(self.repo, self.kind, self.revision, True, large, last, (), 0)

    def plan(self, uploads: Sequence[Upload], *, final: Sequence[str], known: Callable[[str], bool]) -> Plan:
        """final: paths that go last; the last of them marks a repository as ours. known: which paths of such a repository may
        be replaced or deleted.

        Raises PushError if the repository contains anything else. Without the marker it may contain only the files of an
        interrupted push, or the empty card that the Hub creates.
        """
        exists, there = self._there()
        ours = {upload.path: upload for upload in uploads}
        marked, bare = final[-1] in there, there.keys() <= _HUB_OWNED | {"README.md"}

        def fits(path: str) -> bool:
            if path in _HUB_OWNED or bare:
                return True
            return known(path) or path in ours if marked else path in ours and _same(ours[path], there[path])

        strange = sorted(path for path in there if not fits(path))
        if strange:
            raise PushError(
                f"{self.kind} {self.repo} at {self.revision} exists and contains other files: {', '.join(strange[:5])}"
                + (f" and {len(strange) - 5} more" if len(strange) > 5 else ""),
                "push to another repository or revision, or remove those files first",
            )
        changed = [upload for upload in uploads if not _same(upload, there.get(upload.path))]
        keep = {upload.path for upload in uploads} | _HUB_OWNED
        return Plan(
            self.repo,
            self.kind,
            self.revision,
            exists,
            [upload for upload in changed if upload.path not in final],
            [upload for upload in changed if upload.path in final],
            sorted(path for path in there if path not in keep),
            len(uploads) - len(changed),
        )

    def carry_out(self, plan: Plan, *, private: bool, message: str, advance: Callable[[int], None]) -> str:
        """Creates the repository if needed and uploads. `advance` is called after each commit. Returns the address."""
        with understood(self.repo):
            if plan.exists and private and not self.api.repo_info(self.repo, repo_type=self.kind).private:
                raise PushError(
                    f"{self.kind} {self.repo} exists and is public; nothing was sent",
                    "make it private on the Hub first, push to another repository, or leave out --private",
                )
            if not plan.exists:
                self.api.create_repo(self.repo, repo_type=self.kind, private=private, exist_ok=True)
            if self.revision != "main":
                self.api.create_branch(self.repo, repo_type=self.kind, branch=self.revision, exist_ok=True)
            for part in _parts(plan.large):
                self._commit([_addition(upload) for upload in part], f"{message}: data")
                advance(len(part))
            operations = [*map(_addition, plan.last), *(CommitOperationDelete(path) for path in plan.delete)]
            if operations:
                self._commit(operations, message)
                advance(len(plan.last))
        return self.address

    @property
    def address(self) -> str:
        return f"{constants.ENDPOINT}/{'datasets/' if self.kind == 'dataset' else ''}{self.repo}"

    def _commit(self, operations: list[Any], message: str) -> None:
        self.api.create_commit(
            self.repo, operations, commit_message=message, repo_type=self.kind, revision=self.revision, num_threads=4
        )

    def _there(self) -> tuple[bool, dict[str, RepoFile]]:
        with understood(self.repo):
            try:
                listed = self.api.list_repo_tree(self.repo, recursive=True, repo_type=self.kind, revision=self.revision)
                return True, {file.path: file for file in listed if isinstance(file, RepoFile)}
            except RevisionNotFoundError:  # a new branch begins as main
                listed = self.api.list_repo_tree(self.repo, recursive=True, repo_type=self.kind)
                return True, {file.path: file for file in listed if isinstance(file, RepoFile)}
            except RepositoryNotFoundError:
                return False, {}


def _same(upload: Upload, there: RepoFile | None) -> bool:
    if there is None or there.size != upload.size:
        return False
    return bool(there.lfs.sha256 == upload.sha256() if there.lfs is not None else there.blob_id == upload.git_blob())


def _addition(upload: Upload) -> CommitOperationAdd:
    return CommitOperationAdd(upload.path, str(upload.content) if isinstance(upload.content, Path) else upload.content)


def _parts(uploads: Sequence[Upload]) -> Iterator[list[Upload]]:
    part: list[Upload] = []
    for upload in uploads:
        if part and (len(part) == _FILES_PER_COMMIT or sum(u.size for u in part) + upload.size > _BYTES_PER_COMMIT):
            yield part
            part = []
        part.append(upload)
    if part:
        yield part


_BY_STATUS: Final[Mapping[int, tuple[str, str]]] = {
    401: ("the Hub does not accept the token", "set HF_TOKEN, or run `hf auth login`, with a token that may write"),
    402: ("the account's storage quota is exceeded", "free space or raise the quota; the same command continues"),
    403: ("the token may not write there", "use a token with write access to that namespace"),
    404: ("no such namespace or repository, or the token may not see it", "check ORG/NAME and the token's rights"),
    409: ("the repository was changed at the same moment", "run the same command again"),
    413: ("the upload is too large for the account", "free space or raise the quota; the same command continues"),
    429: ("the Hub asks to slow down", "wait some minutes; the same command continues"),
    507: ("the account's storage quota is exceeded", "free space or raise the quota; the same command continues"),
}


@contextmanager
def understood(repo: str) -> Iterator[None]:
    """Turns the Hub's failures into errors with a remedy. No message contains the token."""
    try:
        yield
    except (LocalTokenNotFoundError, OfflineModeIsEnabled) as error:
        remedy = "set HF_TOKEN or run `hf auth login`" if isinstance(error, LocalTokenNotFoundError) else "unset HF_HUB_OFFLINE"
        raise PushError(f"cannot push to {repo}: {str(error).splitlines()[0]}", remedy) from None
    except HFValidationError as error:
        raise PushError(f"{repo!r} is not the name of a repository: {error}", "use ORG/NAME") from None
    except HfHubHTTPError as error:
        raise _of_status(repo, error) from None
    except (_HTTPError, ConnectionError, RuntimeError, OSError, ValueError) as error:
        # ValueError: raised by the Hub's client for a refused object or card
        if "quota" in str(error).lower() or "storage limit" in str(error).lower():
            what, remedy = _BY_STATUS[507]
            raise PushError(f"cannot push to {repo}: {what} ({_clean(str(error))})", remedy) from None
        inner = error.__cause__ if isinstance(error, RuntimeError) and error.__cause__ is not None else error
        if isinstance(inner, HfHubHTTPError):
            raise _of_status(repo, inner) from None
        if (refused := refused_by_system(inner)) is not None:  # a shard here that cannot be read, not the network
            name = f" of {inner.filename}" if isinstance(inner, OSError) and inner.filename else ""
            raise PushError(
                f"the upload to {repo} broke off: {refused.cause}{name}",
                f"{refused.remedy}; the same command continues, what arrived is not sent again",
            ) from None
        raise PushError(
            f"the upload to {repo} broke off: {type(inner).__name__}: {_clean(str(inner))}",
            f"check the network and {constants.ENDPOINT}; the same command continues, what arrived is not sent again",
        ) from None


def _of_status(repo: str, error: HfHubHTTPError) -> PushError:
    status = error.response.status_code if error.response is not None else 0
    message = _clean(getattr(error, "server_message", None) or str(error).splitlines()[0])
    what, remedy = _BY_STATUS.get(status, ("the Hub failed", "the same command continues, what arrived is not sent again"))
    if "quota" in message.lower() or "storage limit" in message.lower():
        what, remedy = _BY_STATUS[507]
    if status in (401, 404) and not os.environ.get("HF_TOKEN"):
        remedy = "set HF_TOKEN, or run `hf auth login`, with a token that may write; check ORG/NAME"
    return PushError(f"cannot push to {repo}: {what} (status {status}: {message})", remedy)


def _clean(text: str) -> str:
    """The text without tokens and signed query strings."""
    token = os.environ.get("HF_TOKEN") or get_token() or ""
    shown = text.replace(token, "…") if token else text
    shown = re.sub(r"\?\S+", "?…", shown)  # addresses may be signed
    return " ".join(shown.split())[:300]
