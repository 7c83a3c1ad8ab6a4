"""The driver of a build: M-BEIR and a teacher in, a published dataset out.

    lock ─► read queries ─► convert pools ─► annotators (Ray) ◄─ servers, when something must be asked
                                                 │ chunks, in any order
                                              staging ─► assemble ─► publish

Everything that must survive is in the ledger, so there is nothing to save when it stops and nothing to load when it goes on:
the same annotations are made again and find their answers.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import shutil
import signal
from pathlib import Path
from types import FrameType
from typing import Any, Final

import orjson

from pipeline.annotate.build_progress import Board
from pipeline.annotate.dispatcher import Dispatcher
from pipeline.dataset.assemble import Assembled, assemble
from pipeline.dataset.build_directory import Places
from pipeline.dataset.manifest import config_sha256, make_manifest, write_card
from pipeline.dataset.publication_guard import nothing_kept, refuse_worse, set_aside
from pipeline.dataset.staging import Staging
from pipeline.dataset.unreadable_inputs import unchanged
from pipeline.files.atomic_directory import recover_directory, replace_directory, staging_path
from pipeline.files.durable import replace_text, sha256_file
from pipeline.files.locks import only_one
from pipeline.files.run_log import run_log
from pipeline.ledger.journal import check_journals
from pipeline.ledger.ledger import journals_directory, recover
from pipeline.ledger.segment import SegmentStore
from pipeline.mbeir.images import ImageStore
from pipeline.mbeir.instructions import InstructionTable
from pipeline.mbeir.layout import Layout
from pipeline.mbeir.pools import CandidatePool
from pipeline.mbeir.stores import build_store
from pipeline.mbeir.work_list import WorkList, collect
from pipeline.traces.token_counts import token_counter
from prompts import PromptSet
from schemas import __version__
from schemas.config import BuildConfig
from schemas.errors import BuildError, BuildStopped, CotError, InputError
from schemas.manifest import InputDigest, Manifest
from schemas.mbeir import DATASET_TASKS
from schemas.os_errors import explained

logger = logging.getLogger(__name__)

_OLD_WRITER_S: Final = 30.0


def build(config: BuildConfig, *, replace: bool = False, quiet: bool = False) -> tuple[Manifest, bool]:
    """Builds (or finishes, or finds finished) the dataset of a config: (its manifest, whether anything was done).

    replace: also a dataset that keeps much less than the one in its place (see `publication_guard`) is published.
    Raises BuildStopped when interrupted, BuildError when it gives up, InputError and ConfigError before any work.
    """
    places = Places(config.out)
    keys = [endpoint.api_key_env for endpoint in config.named_endpoints()]
    with only_one(places.out, config.lock), run_log(places.logs / "build.log", keys=keys):
        logger.info("mbeir-cot %s builds %s from %s", __version__, places.out, config.mbeir)
        recover_directory(places.dataset)
        board = Board(places.progress, quiet=quiet)
        try:
            with _Interrupt() as interrupt:
                one = _Build(config, places, board, interrupt, replace=replace, quiet=quiet)
                manifest, done = one.run()
            _refuse_nothing(manifest)
        except BuildStopped:
            board.state("stopped")
            logger.warning("stopped; the same command goes on")
            raise
        except BaseException as error:
            board.state("failed", str(error).splitlines()[0] if str(error) else type(error).__name__)
            known = isinstance(error, CotError)
            logger.error("failed: %s", error, exc_info=not known)  # noqa: TRY400 (a known cause needs no traceback)
            raise
        else:
            return manifest, done
        finally:
            board.end()


def _refuse_nothing(manifest: Manifest) -> None:
    """A dataset that keeps nothing is a failure also where it was published because that was asked for."""
    if (nothing := nothing_kept(manifest)) is not None:
        raise BuildError(nothing, "fix the cause and run again")


class _Build:
    def __init__(
        self,
        config: BuildConfig,
        places: Places,
        board: Board,
        interrupt: _Interrupt,
        *,
        replace: bool,
        quiet: bool,
    ) -> None:
        self.config, self.places, self.board, self.interrupt = config, places, board, interrupt
        self.replace, self.quiet = replace, quiet
        self.ledger = places.ledger(config)

    def run(self) -> tuple[Manifest, bool]:
        config = self.config
        layout = Layout.open(config.mbeir)
        instructions = InstructionTable.load(layout.instructions)
        self._check()
        self.board.state("reading")
        work = collect(layout, config.input, rejects=self.places.work / "malformed.jsonl", quiet=self.quiet)
        pools = self._pools(layout, work)
        check_journals(journals_directory(SegmentStore(self.ledger), config.ledger.journal))
        recovered = recover(self.ledger, config.ledger.journal, wait_s=_OLD_WRITER_S)
        if recovered.busy and config.ledger.location is None:
            raise BuildError(
                f"another process still writes {recovered.busy[0]}",
                "wait until it has ended (a killed build's may take seconds)",
            )
        inputs = [InputDigest(path=file.path, sha256=file.sha256, rows=file.lines) for file in work.inputs]
        inputs.append(
            InputDigest(path=layout.relative(instructions.path), sha256=sha256_file(instructions.path), rows=len(instructions))
        )
        key = self._state_key(inputs, pools)
        if not config.ledger.retry_failed and (finished := self._finished(key)) is not None:
            self.board.progress.total = self.board.progress.done = finished.queries
            self.board.state("finished", "nothing has changed")
            logger.info("nothing has changed since the dataset was published")
            return finished, False
        with Staging(self.places.work / "staging") as staging:
            self.board.begin(len(work))
            crew = Dispatcher(
                config,
                work,
                staging,
                board=self.board,
                ledger=self.ledger,
                logs=self.places.logs,
                interrupted=lambda: self.interrupt.asked,
            )
            self.interrupt.listen()  # again: Ray has set a handler of SIGTERM
            crew.run()
            self.board.state("writing")
            new = staging_path(self.places.dataset)
            shutil.rmtree(new, ignore_errors=True)
            try:
                assembled = self._assembled(staging, work, new)
                manifest = make_manifest(config, work, assembled, inputs=inputs, pools=pools, staging=staging, dataset=new)
                write_card(manifest, new)
                (new / "manifest.json").write_text(manifest.model_dump_json(indent=1) + "\n", encoding="utf-8")
                if not self.replace:
                    refuse_worse(manifest, new, self.places.dataset, config.publish.least_share)
                shutil.rmtree(set_aside(self.places.dataset), ignore_errors=True)
                self.places.finished.unlink(missing_ok=True)  # it speaks of the dataset that is replaced now
                replace_text(self.places.settings, config.model_dump_json(indent=1) + "\n")
                replace_directory(new, self.places.dataset)
                logger.info(
                    "published %s: %d queries, %d owed, %d files",
                    self.places.dataset,
                    manifest.queries,
                    manifest.owed,
                    len(manifest.files),
                )
            except OSError as error:
                cause, remedy = explained(error)
                raise BuildError(
                    f"the dataset could not be published to {self.places.dataset}: {cause}",
                    f"{remedy}, then run again: the old dataset is untouched and every answer is in the ledger",
                ) from error
            finally:
                shutil.rmtree(new, ignore_errors=True)
        if not manifest.owed:
            unread = {path: found for one in staging.unread.values() for path, found in one.items()}
            self.places.finished.write_bytes(orjson.dumps({"key": self._state_key(inputs, pools), "unread": unread}))
        self.board.state("finished")
        return manifest, True

    def _check(self) -> None:
        """What can be known to be wrong before any work."""
        if self.places.dataset.is_symlink():  # the new one would take the link's place, on the link's disk
            raise BuildError(
                f"{self.places.dataset} is a link to {self.places.dataset.readlink()}, which cannot be replaced in one step",
                "make the build's whole directory the link (or name the other disk's with --out), and move the dataset there",
            )
        token_counter(self.config)
        for teacher in filter(None, (self.config.teacher, self.config.verifier)):
            PromptSet.load(teacher.prompts)
            if teacher.hosting == "managed" and teacher.server is not None:
                from pipeline.serving.model_check import check_model  # noqa: PLC0415

                check_model(teacher.server)

    def _pools(self, layout: Layout, work: WorkList) -> list[InputDigest]:
        """Converts the pools that are needed (once, before annotators all try to)."""
        wanted = set(work.tasks)
        found: dict[Path, InputDigest] = {}
        for task in DATASET_TASKS:
            if (task.dataset, task.task_id) not in wanted:
                continue
            paths = layout.target_pools(task, work.split)
            if not paths and (self.config.verify.enabled or self.config.reveal_target):
                raise InputError(
                    f"{layout.root} has no candidate pool that could hold the positives of {task.name}, {work.split}: "
                    "no trace could be verified",
                    f"{layout.fetch_remedy(task.dataset, work.split)}; or leave it out (input.datasets)",
                )
            for path in paths:
                if path not in found:
                    with CandidatePool.open(path, self.config.input.candidate_cache) as pool:
                        found[path] = InputDigest(path=layout.relative(path), sha256=pool.sha256, rows=len(pool))
        return [found[path] for path in sorted(found)]

    def _state_key(self, inputs: list[InputDigest], pools: list[InputDigest]) -> str:
        """Equal as long as nothing that decides the dataset has changed (images that were read are taken as unchanged)."""
        segments = SegmentStore(self.ledger).names()
        state = [config_sha256(self.config), [i.model_dump() for i in inputs], [p.model_dump() for p in pools], segments]

        return hashlib.sha256(orjson.dumps(state)).hexdigest()

    def _finished(self, key: str) -> Manifest | None:
        """The manifest of the dataset that is there, if it is what this build would give."""
        try:
            finished = orjson.loads(self.places.finished.read_bytes())
            if finished["key"] != key or not unchanged(self._images(), finished["unread"]):
                return None
            manifest = Manifest.model_validate_json((self.places.dataset / "manifest.json").read_bytes())
            whole = all((self.places.dataset / file.path).stat().st_size == file.bytes for file in manifest.files)
        except (OSError, ValueError, KeyError):
            return None
        return manifest if whole else None

    def _images(self) -> ImageStore:
        return build_store(self.config)

    def _assembled(self, staging: Staging, work: WorkList, directory: Path) -> Assembled:
        images = self._images() if self.config.output.with_images else None
        return assemble(
            staging,
            directory,
            split=work.split,
            rows_per_shard=self.config.output.rows_per_shard,
            bypass_duplicates=self.config.on_reject == "bypass",
            images=images,
            image_group_bytes=self.config.output.image_row_group_mb * 1_000_000,
        )


class _Interrupt:
    """The first Ctrl-C (or SIGTERM) asks the build to stop, the second ends the process."""

    def __init__(self) -> None:
        self.asked = False
        self._former: dict[int, Any] = {}

    def __enter__(self) -> _Interrupt:
        self.listen()
        return self

    def listen(self) -> None:
        with contextlib.suppress(ValueError):  # not the main thread: then signals are somebody else's
            for number in (signal.SIGINT, signal.SIGTERM):
                former = signal.signal(number, self._hear)
                self._former.setdefault(number, former)

    def __exit__(self, *_: object) -> None:
        for number, former in self._former.items():
            signal.signal(number, former)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            os._exit(130)
        self.asked = True
