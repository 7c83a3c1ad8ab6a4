"""The driver of a build: M-BEIR and a teacher in, a published dataset out.

    lock ─► read queries ─► convert pools ─► annotators (Ray) ◄─ servers, when something must be asked
                                                 │ chunks, in any order
                                              staging ─► assemble ─► publish

Everything that must survive is in the ledger, so there is nothing to save when it stops and nothing to load when it goes on:
the same journeys are made again and find their answers.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import signal
import socket
import time
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Final

import orjson
import ray

from pipeline.annotator import Annotator, Chunk, Tally
from pipeline.assemble import Assembled, assemble
from pipeline.durable import is_full
from pipeline.ledger.ledger import recover
from pipeline.ledger.report import disputed_subjects
from pipeline.ledger.segment import SegmentStore
from pipeline.manifest import config_sha256, make_manifest, write_card
from pipeline.mbeir.images import ImageStore
from pipeline.mbeir.instructions import InstructionTable
from pipeline.mbeir.layout import Layout
from pipeline.mbeir.pools import CandidatePool
from pipeline.progress_board import Board
from pipeline.publish import mend, publish, scratch
from pipeline.staging import Staging
from pipeline.teacher.hosting.pool import start_ray
from pipeline.teachers import Teachers
from pipeline.tokens import token_counter
from pipeline.worklist import WorkList, collect
from prompts import PromptSet
from schemas.config import BuildConfig
from schemas.errors import CotError
from schemas.manifest import InputDigest, Manifest
from schemas.mbeir import DATASET_TASKS

_AHEAD: Final = 4
"""Queries that an annotator has at once, in requests in flight: a journey is several requests in a row, the next chunks fill
the places that the last queries of one leave, and the limit should always be used."""

_CHUNKS_PER_ANNOTATOR: Final = 24
_CHUNK: Final = (16, 128)
_POLL_S: Final = 0.5
_WATCH_S: Final = 3.0
_DRAIN_S: Final = 60.0
_RESTARTS: Final = 10
_OLD_WRITER_S: Final = 30.0


class BuildError(CotError):
    """A build that cannot go on."""


class BuildStopped(CotError):
    """A build that was asked to stop. What was answered is kept."""


@dataclass(frozen=True)
class Places:
    """The build's directory."""

    out: Path

    @property
    def dataset(self) -> Path:
        return self.out / "dataset"

    @property
    def work(self) -> Path:
        return self.out / "work"

    @property
    def progress(self) -> Path:
        return self.work / "progress.json"

    @property
    def finished(self) -> Path:
        return self.work / "finished.json"

    def ledger(self, config: BuildConfig) -> str:
        return config.ledger.location or str(self.out / "ledger")


def build(config: BuildConfig, *, retry_failed: bool = False, quiet: bool = False) -> tuple[Manifest, bool]:
    """Builds (or finishes, or finds finished) the dataset of a config: (its manifest, whether anything was done).

    Raises BuildStopped when interrupted, BuildError when it gives up, InputError and ConfigError before any work.
    """
    places = Places(config.out)
    with _locked(places.out):
        mend(places.dataset)
        board = Board(places.progress, quiet=quiet)
        try:
            with _Interrupt() as interrupt:
                return _Build(config, places, board, interrupt, retry_failed=retry_failed, quiet=quiet).run()
        except BuildStopped:
            board.state("stopped")
            raise
        except BaseException as error:
            board.state("failed", str(error).splitlines()[0] if str(error) else type(error).__name__)
            raise
        finally:
            board.end()


class _Build:
    def __init__(
        self, config: BuildConfig, places: Places, board: Board, interrupt: _Interrupt, *, retry_failed: bool, quiet: bool
    ) -> None:
        self.config, self.places, self.board, self.interrupt = config, places, board, interrupt
        self.retry_failed, self.quiet = retry_failed, quiet
        self.ledger = places.ledger(config)

    def run(self) -> tuple[Manifest, bool]:
        config = self.config
        layout = Layout.open(config.mbeir)
        instructions = InstructionTable.load(layout.instructions)
        self._check()
        self.board.state("reading")
        work = collect(layout, config.input, rejects=self.places.work / "malformed.jsonl", quiet=self.quiet)
        pools = self._pools(layout, work)
        recovered = recover(self.ledger, config.ledger.journal, wait_s=_OLD_WRITER_S)
        if recovered.busy and config.ledger.location is None:
            raise BuildError(
                f"another process still writes {recovered.busy[0]}",
                "wait until it has ended (a killed build's may take seconds)",
            )
        inputs = [InputDigest(path=file.path, sha256=file.sha256, rows=file.lines) for file in work.inputs]
        inputs.append(
            InputDigest(path=layout.relative(instructions.path), sha256=_sha256(instructions.path), rows=len(instructions))
        )
        key = self._state_key(inputs, pools)
        if not self.retry_failed and (finished := self._finished(key)) is not None:
            self.board.progress.total = self.board.progress.done = finished.queries
            self.board.state("finished", "nothing has changed")
            return finished, False
        with Staging(self.places.work / "staging") as staging:
            self.board.begin(len(work))
            crew = _Crew(self, work, staging)
            crew.run()
            self.board.state("writing")
            new = scratch(self.places.dataset)
            shutil.rmtree(new, ignore_errors=True)
            try:
                assembled = self._assembled(staging, work, new)
                manifest = make_manifest(config, work, assembled, inputs, pools, staging)
                write_card(manifest, new)
                (new / "manifest.json").write_text(manifest.model_dump_json(indent=1) + "\n")
                publish(new, self.places.dataset)
            except OSError as error:
                raise BuildError(
                    f"the dataset could not be published: {error}",
                    "the old dataset is untouched and every answer is in the ledger; free space and run again",
                ) from error
            finally:
                shutil.rmtree(new, ignore_errors=True)
        if not manifest.owed:
            self.places.finished.write_bytes(orjson.dumps({"key": self._state_key(inputs, pools)}))
        self.board.state("finished")
        return manifest, True

    def _check(self) -> None:
        """What can be known to be wrong before any work."""
        token_counter(self.config)
        for teacher in filter(None, (self.config.teacher, self.config.verifier)):
            PromptSet.load(teacher.prompts)
            if teacher.hosting == "managed" and teacher.server is not None:
                from pipeline.teacher.hosting.model_check import check_model  # noqa: PLC0415

                check_model(teacher.server)

    def _pools(self, layout: Layout, work: WorkList) -> list[InputDigest]:
        """Converts the pools that are needed (once, before annotators all try to)."""
        wanted = set(work.tasks)
        split: Any = work.split
        found: dict[Path, InputDigest] = {}
        for task in DATASET_TASKS:
            for path in (layout.local_pool(task, split), layout.global_pool(split)):
                if (task.dataset, task.task_id) in wanted and path is not None and path.is_file() and path not in found:
                    with CandidatePool.open(path, self.config.input.cache) as pool:
                        found[path] = InputDigest(path=layout.relative(path), sha256=pool.sha256, rows=len(pool))
        return [found[path] for path in sorted(found)]

    def _state_key(self, inputs: list[InputDigest], pools: list[InputDigest]) -> str:
        """Equal as long as nothing that decides the dataset has changed (images are taken to be what they were)."""
        segments = SegmentStore(self.ledger).names()
        state = [config_sha256(self.config), [i.model_dump() for i in inputs], [p.model_dump() for p in pools], segments]

        return hashlib.sha256(orjson.dumps(state)).hexdigest()

    def _finished(self, key: str) -> Manifest | None:
        """The manifest of the dataset that is there, if it is what this build would give."""
        try:
            if orjson.loads(self.places.finished.read_bytes())["key"] != key:
                return None
            manifest = Manifest.model_validate_json((self.places.dataset / "manifest.json").read_bytes())
            whole = all((self.places.dataset / file.path).stat().st_size == file.bytes for file in manifest.files)
        except (OSError, ValueError, KeyError):
            return None
        return manifest if whole else None

    def _assembled(self, staging: Staging, work: WorkList, directory: Path) -> Assembled:
        images = None
        if self.config.output.with_images:
            images = ImageStore(self.config.mbeir, allowed_roots=self.config.input.image_roots)
        return assemble(
            staging,
            directory,
            split=work.split,
            rows_per_shard=self.config.output.rows_per_shard,
            bypass_duplicates=self.config.on_reject == "bypass",
            images=images,
        )


class _Crew:
    """The annotators of a build, and what they are given to do."""

    def __init__(self, build: _Build, work: WorkList, staging: Staging) -> None:
        self._build, self._work, self._staging = build, work, staging
        config = build.config
        self._config, self._board = config, build.board
        start_ray()
        cpus = int(ray.cluster_resources().get("CPU", 1))
        count = config.annotators or max(1, cpus // 4)
        least, most = _CHUNK
        self._size = max(least, min(most, -(-len(work) // (count * _CHUNKS_PER_ANNOTATOR))))
        in_flight = config.teacher.transport.max_in_flight
        self._ahead = max(3, -(-_AHEAD * in_flight // self._size))
        self._count = min(count, max(1, -(-len(work) // self._size)))
        self._teachers = Teachers(config, build.places.work / "logs")
        self._tallies: dict[int, Tally] = {}
        self._watched = 0.0

    def run(self) -> None:
        chunks = -(-len(self._work) // self._size)
        try:
            self._annotate(list(range(chunks)), self._count, retry_failed=self._build.retry_failed)
            disputed = self._disputed()
            if disputed:  # two annotators asked the same at once: all go by the ledger's choice
                self._annotate(disputed, 1, retry_failed=False)
        finally:
            self._teachers.stop()

    def _annotate(self, numbers: list[int], count: int, *, retry_failed: bool) -> None:
        remote = ray.remote(num_cpus=0.5, max_restarts=_RESTARTS, max_task_retries=_RESTARTS, scheduling_strategy="SPREAD")(
            Annotator
        )
        crew = [remote.remote(self._config, self._build.ledger, retry_failed=retry_failed) for _ in range(count)]
        waiting, running = deque(numbers), dict[Any, tuple[int, int]]()
        load = [0] * count
        done = sum(self._length(number) for number in range(len(self._staging)) if number not in numbers)
        try:
            self._board.state("running")
            while waiting or running:
                while waiting and min(load) < self._ahead:
                    who = load.index(min(load))
                    number = waiting.popleft()
                    items = self._work.read(number * self._size, (number + 1) * self._size)
                    running[crew[who].annotate.remote(items)] = (number, who)
                    load[who] += 1
                ready, _ = ray.wait(list(running), timeout=_POLL_S)
                for reference in ready:
                    number, who = running.pop(reference)
                    load[who] -= 1
                    chunk: Chunk | None = _got(reference)
                    if chunk is None:
                        raise self._stopped()
                    self._put(number, chunk)
                    done += self._length(number)
                self._watch(crew, done)
                if self._build.interrupt.asked:
                    raise self._stopped()
        except BaseException:
            self._dismiss(crew, list(running))
            raise
        self._board.update(self._tally(crew), done)
        for actor in crew:
            _got(actor.close.remote())
            ray.kill(actor)

    def _put(self, number: int, chunk: Chunk) -> None:
        try:
            self._staging.put(number, chunk)
        except OSError as error:
            raise BuildError(
                f"cannot write {self._staging.path}: {'the disk is full' if is_full(error) else error.strerror}",
                "every answer is in the ledger: free space and run the same command again",
            ) from error

    def _length(self, number: int) -> int:
        return min(len(self._work), (number + 1) * self._size) - number * self._size

    def _stopped(self) -> BuildStopped:
        return BuildStopped("the build was stopped", "run the same command again: it goes on where it stopped")

    def _watch(self, crew: list[Any], done: int) -> None:
        """Progress; servers when they are needed; trouble."""
        now = time.monotonic()
        if now - self._watched < _POLL_S:
            return
        self._watched = now
        tallies = self._tally(crew)
        self._board.update(tallies, done)
        if any(tally.waits_for_teacher for tally in tallies):
            if not self._teachers.begun:
                if "managed" in {self._config.teacher.hosting, (self._config.verifier or self._config.teacher).hosting}:
                    self._board.state("starting the teacher", "vLLM loads the model; this takes a while")
                self._teachers.begin()
            endpoints = self._teachers.endpoints
            if endpoints is not None:
                for actor in crew:
                    actor.connect.remote(endpoints)
                self._board.state("running")
        failures = self._teachers.failures() if self._teachers.endpoints is not None and int(now) % int(_WATCH_S) == 0 else []
        if failures:
            raise BuildError(failures[0], "mend the server's trouble and run again: every answer so far is kept")
        self._give_up(tallies)

    def _give_up(self, tallies: list[Tally]) -> None:
        stop = self._config.stop
        rejected: Counter[str] = Counter()
        for tally in tallies:
            rejected += tally.rejected
        reasons = ", ".join(f"{name} ({count})" for name, count in rejected.most_common(4))
        trouble = next((tally.trouble for tally in tallies if tally.trouble), "")
        if any(tally.unreachable_s > stop.unreachable_s for tally in tallies):
            raise BuildError(
                f"no server of the teacher can be reached for {stop.unreachable_s:g} s",
                "look at the servers (`mbeir-cot teacher check CONFIG`), then run again: every answer so far is kept",
            )
        if any(tally.failure_share > stop.failures for tally in tallies):
            raise BuildError(
                f"more than {stop.failures:.0%} of the last requests had no usable answer: {reasons}\n  the last: {trouble}",
                "look at the teacher (`mbeir-cot teacher check CONFIG`), then run again: every answer so far is kept",
            )
        if any(tally.rejection_share > stop.rejections for tally in tallies):
            raise BuildError(
                f"more than {stop.rejections:.0%} of the last {stop.window} reasoning queries were rejected: {reasons}\n"
                f"  the last: {trouble}",
                "wrong prompt set, model or bounds? `mbeir-cot preview CONFIG` shows journeys; raise stop.rejections to go on",
            )

    def _tally(self, crew: list[Any]) -> list[Tally]:
        """The latest of each; one that is being restarted keeps its last."""
        references = [actor.tally.remote() for actor in crew]
        ray.wait(references, num_returns=len(references), timeout=5)
        for number, reference in enumerate(references):
            with contextlib.suppress(ray.exceptions.RayError):
                self._tallies[number] = ray.get(reference, timeout=0.01)
        return [self._tallies[number] for number in sorted(self._tallies) if number < len(crew)]

    def _dismiss(self, crew: list[Any], running: list[Any]) -> None:
        """Lets what is in flight come in, seals, and ends the annotators."""
        self._board.state("stopping", "waiting for the answers in flight; Ctrl-C again to leave at once")
        with contextlib.suppress(ray.exceptions.RayError):
            drained = [actor.drain.remote() for actor in crew]
            ray.wait(drained, num_returns=len(drained), timeout=_DRAIN_S)
            if running:
                ray.wait(running, num_returns=len(running), timeout=_DRAIN_S)
            closed = [actor.close.remote() for actor in crew]
            ray.wait(closed, num_returns=len(closed), timeout=_DRAIN_S)
        for actor in crew:
            ray.kill(actor)

    def _disputed(self) -> list[int]:
        """Chunks that used an answer which the ledger does not choose: of two to one fingerprint, asked at the same time."""
        if self._count == 1:
            return []
        subjects = disputed_subjects(SegmentStore(self._build.ledger))
        if not subjects:
            return []
        found = []
        for number in range(len(self._staging)):
            ids = {identifier for table in self._staging.get(number) for identifier in table["id"].to_pylist()}
            if ids & subjects:
                found.append(number)
        return found


class _Interrupt:
    """The first Ctrl-C (or SIGTERM) asks the build to stop, the second ends the process."""

    def __init__(self) -> None:
        self.asked = False
        self._former: dict[int, Any] = {}

    def __enter__(self) -> _Interrupt:
        with contextlib.suppress(ValueError):  # not the main thread: then signals are somebody else's
            for number in (signal.SIGINT, signal.SIGTERM):
                self._former[number] = signal.signal(number, self._hear)
        return self

    def __exit__(self, *_: object) -> None:
        for number, former in self._former.items():
            signal.signal(number, former)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            os._exit(130)
        self.asked = True


@contextlib.contextmanager
def _locked(out: Path) -> Iterator[None]:
    """One build in a directory at a time; a killed build's lock is free at once."""
    out.mkdir(parents=True, exist_ok=True)
    file = os.open(out / ".lock", os.O_CREAT | os.O_RDWR, 0o644)
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            holder = os.pread(file, 200, 0).decode("utf-8", "replace").strip()
            raise BuildError(
                f"another build is at work in {out}" + (f" ({holder})" if holder else ""),
                "wait for it (`mbeir-cot status DIR` shows how far it is), or name another directory with --out",
            ) from None
        os.ftruncate(file, 0)
        os.pwrite(file, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        yield
    finally:
        os.close(file)


def _got(reference: Any) -> Any:
    """The result, with an error of ours as itself."""
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        cause = error.cause
        if isinstance(cause, CotError):
            raise cause from None
        raise
    except ray.exceptions.ActorDiedError as error:
        raise BuildError(
            f"an annotator cannot go on (it was restarted up to {_RESTARTS} times): {error}",
            "look at Ray's logs (memory?), mend it and run again; every answer so far is kept",
        ) from None


def _sha256(path: Path) -> str:

    return hashlib.sha256(path.read_bytes()).hexdigest()
