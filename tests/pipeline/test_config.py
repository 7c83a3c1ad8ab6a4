from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.config import load_config
from schemas.config import BuildConfig
from schemas.errors import ConfigError
from schemas.training import TrainConfig

ROOT = Path(__file__).parents[2]


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


EXTERNAL = """
mbeir: somewhere
teacher:
  hosting: external
  endpoints: [{url: "http://127.0.0.1:1/v1", model: m}]
"""


CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
TRAININGS = [path for path in CONFIGS if path.name.startswith("train-") or "-strong-" in path.name]


@pytest.mark.parametrize("path", TRAININGS, ids=lambda path: path.name)
def test_the_shipped_training_configs_are_valid(path: Path) -> None:
    assert load_config(path, TrainConfig).variants


@pytest.mark.parametrize("path", [path for path in CONFIGS if path not in TRAININGS], ids=lambda path: path.name)
def test_the_shipped_configs_are_valid(path: Path) -> None:
    load_config(path, BuildConfig)


def test_overrides_are_yaml(tmp_path: Path) -> None:
    path = write(tmp_path / "c.yaml", EXTERNAL)
    config = load_config(path, BuildConfig, ("teacher.sampling.temperature=0.7", "teacher.grammar=false", "mbeir=/data"))
    assert config.teacher.sampling.temperature == 0.7
    assert config.teacher.grammar is False
    assert config.mbeir == Path("/data")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("teacher.promts=x",), r"teacher\.promts: unknown key; did you mean prompts\?"),
        (("teacher.sampling.temprature=1",), r"did you mean temperature\?"),
        (("teacher.transport.zzz=1",), r"known here: backoff_cap_s, backoff_s"),
        (("teacher.sampling.temperature=hot",), r"teacher\.sampling\.temperature: .*it is 'hot'"),
        (("teacher.sampling.temperature=-1", "teacher.images=fax"), r"(?s)images.*temperature"),
        (("teacher.hosting=managed",), "needs `server`"),
        (("teacher.endpoints=[]",), "needs `endpoints`"),
        (("mbeir",), "key=value"),
        (("mbeir=[a",), r"--set 'mbeir=\[a': its value is not YAML"),
        (("mbeir.x=1",), "has no further keys"),
    ],
)
def test_unknown_settings_are_named_with_the_nearest_known_one(tmp_path: Path, change: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(write(tmp_path / "c.yaml", EXTERNAL), BuildConfig, change)


@pytest.mark.parametrize("text", ["", "- a\n", "a: [\n", "teacher: {}\n"])
def test_invalid_files_are_clear_errors(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match=r"c\.yaml"):
        load_config(write(tmp_path / "c.yaml", text), BuildConfig)
    with pytest.raises(ConfigError, match="cannot read the config"):
        load_config(tmp_path / "none.yaml", BuildConfig)


def test_a_file_of_another_encoding_is_named(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_bytes("mbeir: /data/caf\u00e9\n".encode("latin-1"))
    with pytest.raises(ConfigError, match=r"c\.yaml is not UTF-8 text \(byte 16\)"):
        load_config(tmp_path / "c.yaml", BuildConfig)
