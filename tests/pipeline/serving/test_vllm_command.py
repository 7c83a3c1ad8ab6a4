from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pipeline.serving.model_check import check_model
from pipeline.serving.vllm_command import arguments, command, environment
from schemas.errors import ConfigError
from schemas.hosting import ServerConfig


def pairs(config: ServerConfig) -> dict[str, str]:
    given = arguments(config, 8123)
    return {name: value for name, value in itertools.pairwise(given) if name.startswith("--")}


def test_a_gpu_server() -> None:
    config = ServerConfig(
        model="Qwen/Qwen2.5-VL-72B-Instruct", revision="abc", tensor_parallel_size=4, media_root=Path("/data/M-BEIR")
    )
    given = pairs(config)
    assert given["--model"] == "Qwen/Qwen2.5-VL-72B-Instruct"
    assert given["--revision"] == "abc"
    assert given["--tensor-parallel-size"] == "4"
    assert given["--allowed-local-media-path"] == "/data/M-BEIR"
    assert json.loads(given["--limit-mm-per-prompt"]) == {"image": 2, "video": 0}
    assert json.loads(given["--mm-processor-kwargs"]) == {"max_pixels": 768 * 28 * 28}
    assert given["--host"] == "127.0.0.1"
    assert given["--mm-encoder-tp-mode"] == "data"
    assert "--trust-remote-code" not in given
    assert "--enforce-eager" not in given
    assert "--api-server-count" not in given
    alone = pairs(config.model_copy(update={"tensor_parallel_size": 1, "api_servers": 3}))
    assert "--mm-encoder-tp-mode" not in alone
    assert alone["--api-server-count"] == "3"


@pytest.mark.parametrize(
    ("processor", "limits", "sent"),
    [
        ({"min_pixels": 3136, "max_pixels": 12845056}, {"max_pixels": 5000}, {"shortest_edge": 3136, "longest_edge": 5000}),
        ({"size": {"shortest_edge": 65536, "longest_edge": 16777216}}, {"max_pixels": 5000}, {"shortest_edge": 5000, "longest_edge": 5000}),
        ({"image_processor": {"size": {"shortest_edge": 9, "longest_edge": 99}}}, {"min_pixels": 16, "max_pixels": None}, {"shortest_edge": 16, "longest_edge": 99}),
        ({"size": {"height": 448, "width": 448}}, {"max_pixels": 5000}, None),
    ],
    ids=["Qwen2.5-VL", "Qwen3-VL", "processor_config", "none"],
)  # fmt: skip
def test_a_pixel_budget_has_both_bounds(
    tmp_path: Path, processor: dict[str, Any], limits: dict[str, Any], sent: dict[str, int] | None
) -> None:
    """transformers 5.23 and later need both bounds; processors without such a budget get the old argument."""
    directory = model(tmp_path / "m")
    (tmp_path / "m" / "preprocessor_config.json").write_text(json.dumps(processor))
    given = json.loads(pairs(ServerConfig(model=directory, **limits))["--mm-processor-kwargs"])
    assert given == ({"size": sent} if sent else limits)


def test_the_processor_applies_the_pixel_budget() -> None:
    processors = pytest.importorskip("transformers.models.qwen2_vl.image_processing_qwen2_vl")
    processor, picture = processors.Qwen2VLImageProcessor(min_pixels=3136, max_pixels=12845056), Image.new("RGB", (1200, 900))
    size = {"shortest_edge": 3136, "longest_edge": 602112}
    assert processor(picture, size=size)["image_grid_thw"].tolist() == [[1, 46, 62]]  # the same as with `max_pixels: 602112`


@pytest.mark.slow
def test_vllms_own_parser_accepts_every_argument() -> None:
    pytest.importorskip("vllm")
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    config = ServerConfig(
        model="m", revision="r", tensor_parallel_size=4, media_root=Path("/data"), max_queued=9, api_servers=2, min_pixels=28
    )
    parsed = make_arg_parser(FlexibleArgumentParser()).parse_args(arguments(config, 8123))
    assert parsed.mm_encoder_tp_mode == "data"
    assert parsed.api_server_count == 2
    assert parsed.tensor_parallel_size == 4


def test_vllm_accepts_only_integer_gibibytes_on_cpu() -> None:
    with pytest.raises(ValueError, match="cpu_kv_cache_gib"):
        ServerConfig(model="m", device="cpu", cpu_kv_cache_gib=0.5)  # type: ignore[arg-type]


def test_a_cpu_server() -> None:
    config = ServerConfig(model="m", device="cpu", max_pixels=None, cpu_kv_cache_gib=2, extra_args=("--foo", "1"))
    given = arguments(config, 1)
    assert "--enforce-eager" in given
    assert "--tensor-parallel-size" not in given
    assert "--mm-processor-kwargs" not in given
    assert given[-2:] == ["--foo", "1"]
    assert environment(config)["VLLM_CPU_KVCACHE_SPACE"] == "2"
    assert environment(config)["VLLM_NO_USAGE_STATS"] == "1"


def test_the_supervisor_watches_its_parent() -> None:
    given = command(ServerConfig(model="m"), 1, parent=77)
    assert given[1:5] == ["-m", "pipeline.serving.supervise", "77", "--"]


VISION: dict[str, Any] = {"model_type": "qwen2_5_vl", "vision_config": {}, "text_config": {"max_position_embeddings": 1024}}


def model(directory: Path, config: dict[str, Any] | None = VISION, *files: str) -> str:
    directory.mkdir(exist_ok=True)
    if config is not None:
        (directory / "config.json").write_text(json.dumps(config))
    for name in files or ("model.safetensors", "tokenizer.json", "preprocessor_config.json"):
        (directory / name).touch()
    return str(directory)


def test_a_complete_model_passes(tmp_path: Path) -> None:
    check_model(ServerConfig(model=model(tmp_path / "m"), max_model_len=1024))
    check_model(ServerConfig(model="organisation/name"))  # a Hub repository, which vLLM downloads


@pytest.mark.parametrize("name", ["./none", "/none/at/all", "a/b/c", "none"])
def test_a_missing_directory_is_an_error_before_anything_starts(name: str) -> None:
    with pytest.raises(ConfigError, match="no model directory"):
        check_model(ServerConfig(model=name))


@pytest.mark.parametrize(
    ("config", "files", "message"),
    [
        (None, (), "no config.json"),
        ({"model_type": "qwen2"}, (), "qwen2 has no vision tower"),
        (VISION, ("model.safetensors", "tokenizer.json"), "no image processor"),
        (VISION, ("preprocessor_config.json", "tokenizer.json"), "no weights"),
        (VISION, ("preprocessor_config.json", "model.safetensors"), "no tokenizer"),
        (VISION | {"text_config": {"max_position_embeddings": 512}}, (), "max_model_len is 1024, but the model ends at 512"),
    ],
)
def test_errors_visible_in_the_files_are_reported(
    tmp_path: Path, config: dict[str, Any] | None, files: tuple[str, ...], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        check_model(ServerConfig(model=model(tmp_path / "m", config, *files), max_model_len=1024))


def test_all_problems_are_reported_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no image processor.*no weights.*no tokenizer"):
        check_model(ServerConfig(model=model(tmp_path / "m", VISION, "readme.txt"), max_model_len=8))


def test_a_broken_config_is_a_clear_error(tmp_path: Path) -> None:
    directory = model(tmp_path / "m")
    (tmp_path / "m" / "config.json").write_text("{")
    with pytest.raises(ConfigError, match="cannot be read"):
        check_model(ServerConfig(model=directory))


@pytest.mark.parametrize(
    ("kind", "tiles", "changes"),
    [("internvl", "max_patches", {}), ("internvl_chat", "max_dynamic_patch", {"trust_remote_code": True})],
)
def test_internvl_is_refused_until_it_has_the_named_settings(
    tmp_path: Path, kind: str, tiles: str, changes: dict[str, Any]
) -> None:
    directory = model(tmp_path / "m", VISION | {"model_type": kind})
    usual = ServerConfig.model_validate({"model": directory, "max_model_len": 1024} | changes)
    with pytest.raises(ConfigError, match="ignores the pixel budget") as caught:
        check_model(usual)
    assert f"server.extra_args: [--mm-processor-kwargs, '{{\"{tiles}\": 4}}']" in caught.value.remedy
    named = {"max_pixels": None, "extra_args": ("--mm-processor-kwargs", json.dumps({tiles: 4}))}
    check_model(usual.model_copy(update=named))


def test_an_internvl_with_custom_code_is_reported_before_the_download(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="needs code from its repository") as caught:
        check_model(ServerConfig(model="OpenGVLab/InternVL3-78B"))
    assert "-hf" in caught.value.remedy
    with pytest.raises(ConfigError, match="ignores the pixel budget"):
        check_model(ServerConfig(model="OpenGVLab/InternVL3-78B-hf"))


def test_on_cpu_no_prefill_is_split() -> None:
    """vLLM on CPU dies of a seeded request with a temperature whose prefill is split."""
    for length, least in ((1024, 4096), (8192, 8192)):
        said = arguments(ServerConfig(model="m", device="cpu", max_model_len=length), 1)
        assert "--no-enable-chunked-prefill" in said
        assert int(said[said.index("--max-num-batched-tokens") + 1]) == least
    assert "--no-enable-chunked-prefill" not in arguments(ServerConfig(model="m", max_model_len=1024), 1)
