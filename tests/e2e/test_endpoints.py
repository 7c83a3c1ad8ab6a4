"""Endpoints that differ from vLLM's: the settings that the check names fix the config, and then the build works."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import orjson
import pytest

from bench.oracle import Oracle
from tests.support.builds import built, rows
from tests.support.cli import mbeir_cot

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def checked(config: Path, *overrides: str) -> tuple[int, str]:
    sets = [part for one in overrides for part in ("--set", one)]
    done = mbeir_cot("teacher", "check", config, *sets)
    return done.returncode, done.stdout + done.stderr


def followed(config: Path, *overrides: str) -> tuple[list[str], str]:
    """Applies the settings that the check names, until it finds nothing more. Returns them and its last output."""
    given = list(overrides)
    for _ in range(9):
        code, said = checked(config, *given)
        if code == 0:
            return given[len(overrides) :], said
        named = re.findall(r"what to do: set (\S+): (\{.*?\}|[\w]+)(?: and (\S+): ([\w]+))?", said)
        assert named, said
        for one in named:
            key, value, other, second = one
            new = [f"{key}={value}", *([f"{other}={second}"] if other else [])]
            given = [old for old in given if old.split("=")[0] not in {n.split("=")[0] for n in new}] + new
    raise AssertionError(said)


@pytest.fixture(scope="module")
def strict(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Oracle]:
    directory = tmp_path_factory.mktemp("strict")
    with Oracle(directory / "log", kind="strict", bodies=directory / "bodies") as server:
        yield server


def test_a_server_that_accepts_only_openais_fields(strict: Oracle, small_world: Path, tmp_path: Path) -> None:
    config = strict.config(tmp_path, small_world, input__datasets=["cirr", "webqa", "nights"])
    code, said = checked(config)
    assert code == 1
    assert "it refuses the field" in said
    assert "Unrecognized request argument supplied" in said
    assert all(f"missing {kind} (" in said for kind in ("assess", "reason", "verify"))
    said = built(config, expect=2)
    assert "set teacher.dialect: openai" in said
    assert not (tmp_path / "out" / "dataset").exists()

    settings, said = followed(config)
    assert settings == ["teacher.dialect=openai"]
    assert all(re.search(rf"ok +{kind} ", said) for kind in ("assess", "reason", "verify"))
    assert "(logprobs; complex or simple)" in said
    checks = {shape(body) for body in bodies(strict)}
    built(config, "--set", settings[0])
    records = rows(tmp_path / "out" / "dataset")
    assert {record["route"] for record in records} == {"reasoning", "bypass"}
    assert len(rows(tmp_path / "out" / "dataset", "rejected")) < len(records) / 2
    assert {shape(body) for body in bodies(strict)} <= checks  # the work sends the same requests as the check


def bodies(server: Oracle) -> list[dict[str, object]]:
    assert server.bodies is not None
    found = [orjson.loads(line) for line in server.bodies.read_bytes().splitlines()]
    return [body for body in found if "structured_outputs" not in body]


def shape(body: dict[str, object]) -> tuple[object, ...]:
    """The names of the fields, and the form of images."""
    parts = [part for part in body["messages"][0]["content"] if part["type"] == "image_url"]  # type: ignore[index]
    return (
        *sorted(body),
        frozenset(tuple(sorted(part)) for part in parts),
        frozenset(p["image_url"]["url"][:11] for p in parts),
    )


def test_a_server_of_openais_reasoning_models(small_world: Path, tmp_path: Path) -> None:
    """They accept no sampling and return no log-probabilities: the check names one field after the other."""
    with Oracle(tmp_path / "log", kind="strict-newest") as server:
        config = server.config(tmp_path, small_world, input__datasets=["cirr"])
        settings, said = followed(config)
        assert {one.split("=")[0] for one in settings} == {"teacher.dialect", "teacher.extra_body", "teacher.judgements"}
        assert "temperature: null" in " ".join(settings)
        assert "(stated;" in said
        built(config, *(part for one in settings for part in ("--set", one)))
    assert rows(tmp_path / "out" / "dataset")[0]["provenance"]["temperature"] is None


@pytest.mark.parametrize("kind", ["hidden", "first", "aloud"])
def test_a_thinking_model(kind: str, small_world: Path, tmp_path: Path) -> None:
    with Oracle(tmp_path / "log", kind=f"thinking-{kind}") as server:
        config = server.config(tmp_path, small_world, input__datasets=["cirr"])
        said = built(config, expect=2)
        assert "the model thinks before it answers" in said
        settings, said = followed(config)
    assert settings == ["teacher.chat_template_kwargs={enable_thinking: false}"]


def test_the_verifier_is_checked_with_its_own_settings(strict: Oracle, small_world: Path, tmp_path: Path) -> None:
    with Oracle(tmp_path / "log") as teacher:
        verifier = {
            "hosting": "external",
            "endpoints": [{"url": strict.url, "model": "oracle"}],
            "prompts": "pocket",
            "images": "path",
        }
        config = teacher.config(tmp_path, small_world, verifier=verifier, input__datasets=["cirr"])
        assert "the verifier" in built(config, expect=2)
        code, said = checked(config)
        assert code == 1
        assert "missing verify (" in said
        settings, said = followed(config)
    assert settings == ["verifier.dialect=openai", "verifier.images=data_url"]


def test_another_model_under_the_same_name_is_detected(small_world: Path, tmp_path: Path) -> None:
    some = {"input__datasets": ["cirr"], "input__limit": 6}
    with Oracle(tmp_path / "first.log", root="/models/a") as server:
        built(server.config(tmp_path, small_world, **some))
    with Oracle(tmp_path / "second.log", root="/models/b") as server:
        config = server.config(tmp_path, small_world, **some)
        assert "Nothing has changed" in built(config)  # nothing is asked
        said = built(config, "--limit", "12", expect=2)
        assert "serve oracle as /models/b, oracle; the ledger's answers under that name are of /models/a, oracle" in said
        assert not server.answered()
        revised = json.dumps([{"url": server.url, "model": "oracle", "revision": "b"}])
        built(config, "--limit", "12", "--set", f"teacher.endpoints={revised}")
        anew = server.answered().total()
        kept = re.search(r"remove (\S+\.json)", said)
        assert kept is not None
        Path(kept[1]).unlink()
        built(config, "--limit", "12")
        assert anew > server.answered().total() - anew > 0  # the first six are not asked again
    assert {row["provenance"]["revision"] for row in rows(tmp_path / "out" / "dataset")} == {"as served"}


def test_an_endpoint_that_is_not_there_or_wants_a_key(
    small_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each remedy of the check is followed, until it finds nothing more."""
    with Oracle(tmp_path / "log", key="its-key") as server:
        config = server.config(tmp_path, small_world, input__datasets=["cirr"])
        endpoint = {"url": server.url, "model": "oracle"}
        code, said = checked(config, f"teacher.endpoints={json.dumps([endpoint | {'url': 'http://127.0.0.1:9/v1'}])}")
        assert code == 1
        assert re.search(r"what to do: start the server, or fix the URL in teacher\.endpoints", " ".join(said.split()))
        code, said = checked(config, f"teacher.endpoints={json.dumps([endpoint])}")
        assert code == 1
        named = re.search(r"set (api_key_env) of (teacher\.endpoints) to a variable", " ".join(said.split()))
        assert named is not None, said
        monkeypatch.setenv("ITS_KEY", "its-key")
        given = f"{named[2]}={json.dumps([endpoint | {named[1]: 'ITS_KEY'}])}"
        code, said = checked(config, given)
        assert code == 0, said
        assert "its-key" not in said
        for options, remedy in (
            (["--set", "input.datasets=[edis]", "--set", "input.tasks=[7]"], "name other datasets"),
            (["--skip", "100000"], "a smaller --skip"),
        ):
            refused = mbeir_cot("teacher", "check", config, "--set", given, *options)
            assert refused.returncode == 2
            assert remedy in " ".join(refused.stderr.split())
            assert "`mbeir-cot mbeir check`" in " ".join(refused.stderr.split())
