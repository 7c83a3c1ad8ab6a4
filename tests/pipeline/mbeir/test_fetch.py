from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.mbeir.extracted import LISTING
from pipeline.mbeir.fetch import REPO_ID, checked_datasets, image_folder, patterns
from schemas.errors import ConfigError
from schemas.mbeir import DATASET_IDS
from tests.pipeline.mbeir.test_extract import archive, write_parts
from tests.support.cli import mbeir_cot
from tests.support.hub import HubServer, serve


@pytest.fixture
def hub(mbeir: Path, tmp_path: Path) -> Iterator[HubServer]:
    """The hand-made directory as a Hub repository, with its images in three parts."""
    folder = tmp_path / "hub"
    shutil.copytree(mbeir, folder, ignore=shutil.ignore_patterns("mbeir_images"))
    contents = {str(p.relative_to(mbeir)): p.read_bytes() for p in sorted((mbeir / "mbeir_images").rglob("*.jpg"))}
    write_parts(folder, archive(contents))
    (folder / "README.md").write_text("a card")
    with serve(folder, REPO_ID) as server:
        yield server


def fetch(hub: HubServer | str, dest: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    url = hub if isinstance(hub, str) else hub.url
    return mbeir_cot(
        "mbeir", "fetch", dest, *arguments, HF_ENDPOINT=url, HF_HOME=str(dest.parent / "hf"), HF_HUB_OFFLINE="0", **environment
    )


def names(folder: Path) -> set[str]:
    return {
        str(p.relative_to(folder))
        for p in folder.rglob("*")
        if p.is_file() and not p.name.startswith(".") and ".cache" not in p.parts
    }


@pytest.mark.slow
def test_a_complete_fetch(hub: HubServer, mbeir: Path, tmp_path: Path) -> None:
    dest = tmp_path / "dest"
    done = fetch(hub, dest, "--remove-parts", HF_TOKEN="hf_secret")
    assert done.returncode == 0, done.stderr
    assert names(dest) == names(mbeir)
    assert "hf_secret" not in done.stdout + done.stderr
    assert "Bearer hf_secret" in hub.authorizations
    assert mbeir_cot("mbeir", "check", dest).returncode == 0
    downloads = hub.downloads.total()
    again = fetch(hub, dest)
    assert again.returncode == 0, again.stderr
    assert hub.downloads.total() == downloads  # neither the files nor the archive, which is already extracted


@pytest.mark.slow
@pytest.mark.parametrize("listed", [True, False], ids=["listed", "of-an-earlier-version"])
def test_images_that_were_lost_or_damaged_are_extracted_again(
    hub: HubServer, mbeir: Path, tmp_path: Path, listed: bool
) -> None:
    dest = tmp_path / "dest"
    assert fetch(hub, dest, "--remove-parts").returncode == 0
    if not listed:
        (dest / LISTING).unlink()
    lost, damaged, own = sorted((dest / "mbeir_images").rglob("*.jpg"))[:3]
    lost.unlink()
    damaged.write_bytes(damaged.read_bytes()[:100])
    (dest / "mbeir_images" / "README").write_text("")  # a file of the user
    kept = own.stat().st_mtime_ns
    again = fetch(hub, dest)
    assert again.returncode == 0, again.stderr
    assert "2 of them written now" in again.stdout
    assert "since they were extracted" in again.stdout
    for path in (lost, damaged):
        assert path.read_bytes() == (mbeir / path.relative_to(dest)).read_bytes()
    assert own.stat().st_mtime_ns == kept
    downloads = hub.downloads.total()
    third = fetch(hub, dest)
    assert "since they were extracted" not in third.stdout
    assert hub.downloads.total() == downloads


@pytest.mark.slow
def test_a_dataset_that_needs_the_union_for_training_says_so(hub: HubServer, tmp_path: Path) -> None:
    done = fetch(hub, tmp_path / "dest", "--datasets", "mscoco", "--no-images")
    assert "MSCOCO's training candidates are in the global pool only" in done.stdout
    done = fetch(hub, tmp_path / "dest", "--datasets", "mscoco", "--no-images", "--union")
    assert "global pool only" not in done.stdout
    assert (tmp_path / "dest/cand_pool/global/mbeir_union_train_cand_pool.jsonl").is_file()


@pytest.mark.slow
def test_one_dataset_without_images(hub: HubServer, tmp_path: Path) -> None:
    done = fetch(hub, tmp_path / "dest", "--datasets", "oven", "--no-images")
    assert done.returncode == 0, done.stderr
    found = names(tmp_path / "dest")
    assert "instructions/query_instructions.tsv" in found
    assert "query/val/mbeir_oven_task6_val.jsonl" in found
    assert not [name for name in found if "mscoco" in name or "union" in name or "images" in name]


@pytest.mark.slow
def test_one_dataset_with_its_images(hub: HubServer, mbeir: Path, tmp_path: Path) -> None:
    done = fetch(hub, tmp_path / "dest", "--datasets", "infoseek")
    assert done.returncode == 0, done.stderr
    assert {p.name for p in (tmp_path / "dest" / "mbeir_images").iterdir()} == {"oven_images"}


@pytest.mark.slow
def test_an_interrupted_download_resumes(hub: HubServer, mbeir: Path, tmp_path: Path) -> None:
    name = "query/val/mbeir_oven_task6_val.jsonl"
    path = hub.folder / name
    path.write_bytes(path.read_bytes() + b"\n" * (24 << 20))  # the client saves its progress every 10 MiB
    hub.cut[name] = 21 << 20
    done = fetch(hub, tmp_path / "dest")
    if done.returncode:  # the client gave up: the command reports it, and the next run resumes
        assert "continues" in done.stderr
        assert "Traceback" not in done.stderr
        done = fetch(hub, tmp_path / "dest")
    assert done.returncode == 0, done.stderr
    assert f"{name}@{20 << 20}" in hub.ranges  # from the break, not from the beginning
    assert (tmp_path / "dest" / name).read_bytes() == path.read_bytes()


@pytest.mark.slow
def test_a_refusal_of_the_hub_is_a_clear_error(hub: HubServer, tmp_path: Path) -> None:
    hub.repo_id = "someone/else"
    done = fetch(hub, tmp_path / "dest")
    assert (done.returncode, "Traceback" in done.stderr) == (2, False)
    assert f"the Hub does not show {REPO_ID}" in done.stderr


@pytest.mark.slow
def test_no_network_is_a_clear_error(tmp_path: Path) -> None:
    done = fetch("http://127.0.0.1:9", tmp_path / "dest")
    assert (done.returncode, "Traceback" in done.stderr) == (2, False)
    assert "cannot be reached" in done.stderr
    assert "run again: it continues" in done.stderr


@pytest.mark.slow
def test_offline_is_a_clear_error(tmp_path: Path) -> None:
    done = mbeir_cot("mbeir", "fetch", tmp_path / "dest", HF_HUB_OFFLINE="1")
    assert done.returncode == 2
    assert "HF_HUB_OFFLINE" in done.stderr or "cannot be reached" in done.stderr


def test_an_unknown_dataset_gets_a_suggestion() -> None:
    assert checked_datasets(None) == tuple(DATASET_IDS)
    with pytest.raises(ConfigError, match=r"'MSCOCOO'.*\n.*did you mean mscoco"):
        checked_datasets(["oven", "MSCOCOO"])


def test_patterns_and_folders() -> None:
    assert image_folder("infoseek") == image_folder("oven") == "oven_images"
    assert patterns(["cirr"], union=False, images=False) == [
        "instructions/query_instructions.tsv",
        "query/*/mbeir_cirr_*.jsonl",
        "cand_pool/local/mbeir_cirr_*.jsonl",
        "qrels/*/mbeir_cirr_*.txt",
    ]
