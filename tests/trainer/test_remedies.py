"""What the trainer's refusals tell the user to do, done: each is provoked, its remedy read from the message, and followed."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mbeir_cot.app import app
from schemas.errors import CotError

pytestmark = [pytest.mark.slow]


def done(*arguments: str | Path) -> None:
    """The command, in this process. Raises what it would print."""
    result = CliRunner().invoke(app, [*map(str, arguments)], standalone_mode=False)
    if result.exception is not None:
        raise result.exception


def refused(words: str, *arguments: str | Path) -> str:
    """The remedy of a command that is refused with these words."""
    with pytest.raises(CotError, match=words) as caught:
        done(*arguments)
    return caught.value.remedy


def named(pattern: str, remedy: str) -> str:
    """What a remedy names, in the pattern's first group."""
    found = re.search(pattern, remedy)
    assert found is not None, remedy
    return found[1]


@pytest.mark.timeout(300)
def test_from_a_run_to_hits(finished: Path, tiny_world: Path, tmp_path: Path) -> None:
    where, taken = tmp_path / "index", tmp_path / "taken"
    model = finished / "trace" / "model"
    mbeir = ("--set", f"data.mbeir={tiny_world}")
    index = ("index", finished, *mbeir, "--split", "val", "--pool", "webqa_task1", "--quiet")

    assert named(r"(another --variant)", refused("holds no embedder", *index, "--out", where, "--variant", "direct-trace"))
    pooling = named(r"set (model\.pooling: \w+)", refused("was trained with pool", *index, "--out", where, *wrong_pool(model)))
    taken.mkdir()
    (taken / "notes.txt").touch()
    assert named(r"(another --out)", refused("holds something else", *index, "--out", taken))
    command = named(r"`mbeir-cot (index)`", refused("is no index", "search", where, "a red thing"))
    assert command == "index"
    done(*index, "--out", where, "--variant", "trace", "--set", pooling.replace(": ", "="))
    done("search", where, "a red thing", "-k", "2")

    remedy = refused("has no approximate index", "search", where, "a red thing", "--approximate")
    done(*index, "--out", where, *named(r"`mbeir-cot index … ([^`]+)`", remedy).split())
    done("search", where, "a red thing", "-k", "2", "--approximate")

    (where / "approximate.faiss").write_bytes(b"")
    remedy = refused("is damaged", "search", where, "a red thing", "--approximate")
    done(*index, "--out", where, *named(r"`mbeir-cot index … ([^`]+)`", remedy).split())
    done("search", where, "a red thing", "-k", "2", "--approximate")
    (where / "corpus_ids.npy").write_bytes(b"")
    remedy = refused("cannot read", *index, "--out", where)
    shutil.rmtree(named(r"remove (\S+), then", remedy))
    done(*index, "--out", where)
    done("search", where, "a red thing", "-k", "2")

    remedy = refused("does not say where M-BEIR is", "index", model, "--out", where, *index[4:])
    setting = named(r"add --set (data\.mbeir)=DIR", remedy)
    done("index", model, "--out", where, "--set", f"{setting}={tiny_world}", *index[4:])


def wrong_pool(model: Path) -> tuple[str, str]:
    from trainer.model.metadata import EmbedderMetadata

    return "--set", f"model.pooling={'pre' if EmbedderMetadata.read(model).pool == 'token' else 'token'}"


@pytest.mark.timeout(300)
def test_from_a_run_that_is_not_finished_to_a_push(
    finished: Path, train_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    (run / "trace" / "model" / "finished.json").unlink()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    push = ("push-model", run, "org/name", "--dry-run")
    command = named(r"`mbeir-cot (train)` first, with variant trace", refused("not finished", *push))
    done(command, train_file, "--out", run, "--quiet")
    done(*push)


@pytest.mark.timeout(300)
def test_from_an_evaluation_to_a_report(finished: Path, tiny_world: Path, dataset: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    mbeir = ("--set", f"data.mbeir={tiny_world}", "--set", "evaluation.base=false", "--quiet")
    command = named(r"`mbeir-cot (eval \S+)`", refused("was not evaluated on test", "report", run)).split()

    remedy = refused("has no test queries", *command, *mbeir, "--set", f"data.mbeir={without_test(tiny_world, tmp_path)}")
    setting = named(r"set (evaluation\.split)", remedy)
    val = (*mbeir, "--set", f"{setting}=val")
    teacher = ("--set", f"evaluation.teacher_trace_dataset={dataset}")
    null = named(r"set (evaluation\.teacher_trace_dataset: null)", refused("was built on train", *command, *val, *teacher))
    done(*command, *val, *teacher, "--set", null.replace(": ", "="))

    damaged = run / "eval" / "embed" / "trace" / "cand_pool" / "mbeir_webqa_task1_cand_pool_embed.npy"
    damaged.write_bytes(damaged.read_bytes()[:1000])
    lost = named(r"remove (\S+\.npy)", refused("cannot read the embeddings", *command, *val))
    Path(lost).unlink()
    done(*command, *val)

    done("report", run)  # of the split that was evaluated
    assert (run / "report.html").is_file()


def without_test(world: Path, place: Path) -> Path:
    """The same M-BEIR without its test queries."""
    root = place / "M-BEIR"
    (root / "query").mkdir(parents=True)
    for name in ("cand_pool", "instructions", "mbeir_images", "qrels", "query/val", "query/train"):
        (root / name).symlink_to(world / name)
    return root


@pytest.mark.timeout(300)
def test_what_keeps_a_merge_from_its_servers(
    finished: Path, tiny_world: Path, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Followed until the servers would start, which takes a minute; tests/trainer/release merges for real."""
    from trainer.release import merge

    class Begun(Exception):
        pass

    def begun(*_: object) -> None:
        raise Begun

    monkeypatch.setattr(merge, "_check", begun)
    model, out = finished / "trace" / "model", tmp_path / "out"
    option = named(r"add (--set data\.mbeir=)DIR", refused("does not say where M-BEIR is", "merge", model, out))
    given = [*f"{option}{tiny_world}".split()]
    option = named(
        r"add (--set data\.dataset=)DIR", refused("does not say what it was trained on", "merge", model, out, *given)
    )
    given += f"{option}{dataset}".split()
    out.mkdir()
    (out / "notes.txt").touch()
    assert named(r"(remove it)", refused(" exists", "merge", model, out, *given))
    shutil.rmtree(out)
    with pytest.raises(Begun):
        done("merge", model, out, *given)
    assert not out.exists()
    assert named(r"(another --variant)", refused("holds no embedder", "merge", finished, out, "--variant", "direct"))
    with pytest.raises(Begun):
        done("merge", finished, out, "--variant", "trace")


def test_a_dataset_that_is_not_there(finished: Path, train_file: Path, dataset: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "run")
    train = ("train", train_file, "--quiet", "--out")
    remedy = refused("no dataset at", *train, tmp_path / "new", "--set", f"data.dataset={tmp_path / 'nowhere'}")
    assert "`mbeir-cot build`" in remedy
    done(*train, tmp_path / "run", "--set", f"data.dataset={dataset}")


@pytest.mark.parametrize(
    ("arguments", "remedy"),
    [
        (("eval", "--set", "evaluation.spilt=val"), r"did you mean (split)\?"),
        (("mbeir", "fetch", "DIR", "--datasets", "cir"), r"did you mean (cirr)\?"),
        (("score", "--uniir-dir", "D", "--mbeir-dir", "D", "--suffix", "s", "--split", "train"), r"(val) or test"),
        (("score", "--uniir-dir", "D", "--mbeir-dir", "D", "--suffix", "s", "--device", "tpu"), r"auto, (cpu) or cuda"),
        (("search", "INDEX", "--route", "often"), r"(learned), always-direct"),
        (("search", "INDEX"), r"give a (text), --image"),
        (("index", "RUN", "--out", "O", "--variant", "none", "--split", "dev"), r"train, (val) or test"),
    ],
)
def test_words_that_are_not_known_name_those_that_are(
    finished: Path, tmp_path: Path, arguments: tuple[str, ...], remedy: str
) -> None:
    """Followed, the refusal is another, or there is none."""
    given = [finished if one == "RUN" else one for one in arguments]
    if arguments[0] == "eval":
        given.insert(1, finished)
    if arguments[:2] == ("search", "INDEX") and len(arguments) > 2:
        given.insert(2, "words")
    with pytest.raises(CotError) as caught:
        done(*given)
    right = named(remedy, str(caught.value))
    wrong = str(arguments[-1])
    if wrong == "INDEX":
        followed = [*given, right]
    elif "=" in wrong:
        followed = [*given[:-1], f"evaluation.{right}=nowhere"]
    else:
        followed = [*given[:-1], right]
    if arguments[0] == "mbeir":
        from pipeline.mbeir.fetch import checked_datasets

        assert checked_datasets([right]) == (right,)
        return
    with pytest.raises(CotError) as other:
        done(*followed)
    assert str(other.value) != str(caught.value)


def test_a_model_that_is_not_in_the_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """`teacher fetch` without a network, by a directory instead."""
    from huggingface_hub import constants

    from pipeline.serving.weights import fetch_model
    from pocket.training.train_models import MODELS
    from schemas.hosting import ServerConfig

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(CotError, match="not in the cache") as caught:
        fetch_model(ServerConfig(model="org/model"))
    assert named(r"(local directory) as `server.model`", caught.value.remedy)
    assert fetch_model(ServerConfig(model=str(MODELS / "teacher"), max_model_len=512)) == MODELS / "teacher"
