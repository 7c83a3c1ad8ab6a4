"""The driver of a build: M-BEIR and a teacher in, a published dataset out.

    lock ─► read queries ─► convert pools ─► workers (Ray) ◄─ servers, when a request must be sent
                                              │ chunks, in any order
                                           staging ─► assemble ─► publish

Everything that must survive is in the ledger. A build saves nothing when it stops and loads nothing when it resumes: it makes
the same annotations again from the stored answers.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

import orjson

from pipeline.annotate.build_progress import Board
from pipeline.annotate.dispatcher import Dispatcher
from pipeline.annotate.interrupt import Interrupt
from pipeline.annotate.wanted_records import Acceptance
from pipeline.dataset.assemble import assemble
from pipeline.dataset.build_directory import Places
from pipeline.dataset.chosen_queries import Chosen
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
from pipeline.mbeir.image_store import ImageStore
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


def build(config: BuildConfig, *, replace: bool = False) -> tuple[Manifest, bool]:
    """Builds the dataset of a config, or continues a build. Returns its manifest, and False if it was already up to date.

    replace: publishes even a dataset that keeps much less than the one it replaces (see `publication_guard`).
    Raises BuildStopped when interrupted, BuildError when it gives up, InputError and ConfigError before any work.
    """
    places = Places(config.out)
    keys = [endpoint.api_key_env for endpoint in config.named_endpoints()]
    with only_one(places.out, config.lock), run_log(places.logs / "build.log", keys=keys):
        logger.info("mbeir-cot %s builds %s from %s", __version__, places.out, config.mbeir)
        recover_directory(places.dataset)
        board = Board(places.progress)
        try:
            with Interrupt() as interrupt:
                run = _Build(config, places, board, interrupt, replace=replace)
                manifest, done = run.run()
            _refuse_nothing(manifest)
        except BuildStopped:
            board.state("stopped")
            logger.warning("stopped; the same command continues")
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
    """An empty dataset is a failure, even if it was published on request."""
    if (nothing := nothing_kept(manifest)) is not None:
        raise BuildError(nothing, "fix the cause and run again")


class _Inputs(NamedTuple):
    """The queries of a build and the files that they were read from."""

    work: WorkList
    files: list[InputDigest]
    pools: list[InputDigest]


class _Build:
    def __init__(
        self,
        config: BuildConfig,
        places: Places,
        board: Board,
        interrupt: Interrupt,
        *,
        replace: bool,
    ) -> None:
        self.config, self.places, self.board, self.interrupt = config, places, board, interrupt
        self.replace = replace
        self.ledger = places.ledger(config)

    def run(self) -> tuple[Manifest, bool]:
        layout = Layout.open(self.config.mbeir)
        instructions = InstructionTable.load(layout.instructions)
        self._check()
        inputs = self._read(layout, instructions)
        self._recover()
        if not self.config.ledger.retry_failed and (finished := self._finished(self._state_key(inputs))) is not None:
            self.board.progress.total = self.board.progress.done = finished.queries
            self.board.state("finished", "nothing has changed")
            logger.info("nothing has changed since the dataset was published")
            return finished, False
        with Staging(self.places.work / "staging") as staging:
            chosen = self._annotate(inputs.work, staging)
            manifest = self._publish(inputs, chosen, staging)
        if not manifest.owed:
            unread = {path: state for chunk in staging.unread.values() for path, state in chunk.items()}
            self.places.finished.write_bytes(orjson.dumps({"key": self._state_key(inputs), "unread": unread}))
        self.board.state("finished")
        return manifest, True

    def _read(self, layout: Layout, instructions: InstructionTable) -> _Inputs:
        """Reads the queries, and the digests of all files that they and their candidates come from."""
        self.board.state("reading")
        work = collect(layout, self.config.input, rejects=self.places.work / "malformed.jsonl")
        pools = self._pools(layout, work)
        files = [InputDigest(path=file.path, sha256=file.sha256, rows=file.lines) for file in work.inputs]
        files.append(
            InputDigest(path=layout.relative(instructions.path), sha256=sha256_file(instructions.path), rows=len(instructions))
        )
        return _Inputs(work, files, pools)

    def _recover(self) -> None:
        """Seals the journals that killed workers left."""
        journals = self.config.ledger.journal
        check_journals(journals_directory(SegmentStore(self.ledger), journals))
        recovered = recover(self.ledger, journals, wait_s=_OLD_WRITER_S)
        if recovered.busy and self.config.ledger.location is None:
            raise BuildError(
                f"another process is still writing {recovered.busy[0]}",
                "wait until it ends (a killed build's may take seconds)",
            )

    def _annotate(self, work: WorkList, staging: Staging) -> Chosen:
        """Annotates the queries, or as many as are needed for the records that are wanted."""
        self.board.begin(len(work))
        with Dispatcher(
            self.config,
            board=self.board,
            ledger=self.ledger,
            logs=self.places.logs,
            interrupted=lambda: self.interrupt.asked,
        ) as dispatcher:
            self.interrupt.listen()  # again: Ray has set its own handler of SIGTERM
            if self.config.accept.records is not None:
                return Acceptance(work, self.config).annotate(self._counted(dispatcher), staging)
            dispatcher.run(work, staging)
            return Chosen(work)

    def _counted(self, dispatcher: Dispatcher) -> Callable[[WorkList, Staging], None]:
        def run(work: WorkList, staging: Staging) -> None:
            self.board.progress.total = len(work)
            dispatcher.run(work, staging)

        return run

    def _publish(self, inputs: _Inputs, chosen: Chosen, staging: Staging) -> Manifest:
        """Writes the complete dataset beside the old one, then replaces the old one."""
        self.board.state("writing")
        dataset, new = self.places.dataset, staging_path(self.places.dataset)
        shutil.rmtree(new, ignore_errors=True)
        try:
            manifest = self._write(inputs, chosen, staging, new)
            if not self.replace:
                refuse_worse(manifest, new, dataset, self.config.publish.least_share)
            shutil.rmtree(set_aside(dataset), ignore_errors=True)
            self.places.finished.unlink(missing_ok=True)  # it describes the old dataset
            replace_text(self.places.settings, self.config.model_dump_json(indent=1) + "\n")
            replace_directory(new, dataset)
        except OSError as error:
            cause, remedy = explained(error)
            raise BuildError(
                f"the dataset could not be published to {dataset}: {cause}",
                f"{remedy}, then run again: the old dataset is untouched and every answer is in the ledger",
            ) from error
        finally:
            shutil.rmtree(new, ignore_errors=True)
        shown = (dataset, manifest.queries, manifest.owed, len(manifest.files))
        logger.info("published %s: %d queries, %d owed, %d files", *shown)
        return manifest

    def _write(self, inputs: _Inputs, chosen: Chosen, staging: Staging, directory: Path) -> Manifest:
        """Writes all files of the dataset, its card and its manifest."""
        output = self.config.output
        assembled = assemble(
            staging,
            directory,
            split=inputs.work.split,
            rows_per_shard=output.rows_per_shard,
            bypass_duplicates=self.config.on_reject == "bypass",
            images=self._images() if output.with_images else None,
            image_group_bytes=output.image_row_group_mb * 1_000_000,
        )
        manifest = make_manifest(
            self.config,
            chosen,
            assembled,
            inputs=inputs.files,
            pools=inputs.pools,
            staging=staging,
            dataset=directory,
        )
        write_card(manifest, directory)
        (directory / "manifest.json").write_text(manifest.model_dump_json(indent=1) + "\n", encoding="utf-8")
        return manifest

    def _check(self) -> None:
        """Checks what can be checked before any work."""
        if self.places.dataset.is_symlink():  # the new dataset would replace the link itself, on the link's disk
            raise BuildError(
                f"{self.places.dataset} is a link to {self.places.dataset.readlink()}, which cannot be replaced in one step",
                "make the build's whole directory a link (or name the directory on the other disk with --out), "
                "and move the dataset there",
            )
        token_counter(self.config)
        for teacher in filter(None, (self.config.teacher, self.config.verifier)):
            PromptSet.load(teacher.prompts)
            if teacher.hosting == "managed" and teacher.server is not None:
                from pipeline.serving.model_check import check_model  # noqa: PLC0415

                check_model(teacher.server)

    def _pools(self, layout: Layout, work: WorkList) -> list[InputDigest]:
        """Converts the needed pools once, before the workers open them."""
        wanted = set(work.tasks)
        pools: dict[Path, InputDigest] = {}
        for task in DATASET_TASKS:
            if (task.dataset, task.task_id) not in wanted:
                continue
            paths = layout.target_pools(task, work.split)
            if not paths and (self.config.verify.enabled or self.config.reveal_target):
                raise InputError(
                    f"{layout.root} has no candidate pool that could contain the positives of {task.name}, {work.split}: "
                    "no trace could be verified",
                    f"{layout.fetch_remedy(task.dataset, work.split)}; or leave it out (input.datasets)",
                )
            for path in paths:
                if path not in pools:
                    with CandidatePool.open(path, self.config.input.candidate_cache) as pool:
                        pools[path] = InputDigest(path=layout.relative(path), sha256=pool.sha256, rows=len(pool))
        return [pools[path] for path in sorted(pools)]

    def _state_key(self, inputs: _Inputs) -> str:
        """Equal while nothing that determines the dataset has changed (images that were read are assumed unchanged)."""
        segments = SegmentStore(self.ledger).names()
        digests = [[file.model_dump() for file in files] for files in (inputs.files, inputs.pools)]
        state = [config_sha256(self.config), *digests, segments]
        return hashlib.sha256(orjson.dumps(state)).hexdigest()

    def _finished(self, key: str) -> Manifest | None:
        """The manifest of the existing dataset, if this build would produce the same."""
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
