"""Publishing through a server that speaks the Hub's protocol: the real command, and the real loaders.

Long because all that is pushed, refused and checked shares one Hub and one build.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from huggingface_hub.errors import HfHubHTTPError

from pipeline.hub.push import PushError, understood
from tests.pipeline.hub.conftest import rewritten
from tests.support.builds import digests, kill, start
from tests.support.cli import mbeir_cot
from tests.support.hub_repos import TOKEN, HubRepos, hub_repos

pytestmark = [pytest.mark.slow]

REPO = "org/m-beir-cot"


@pytest.fixture(scope="module")
def server() -> Iterator[HubRepos]:
    with hub_repos() as server:
        yield server


@pytest.fixture
def hub(server: HubRepos) -> HubRepos:
    """Empty. Its address stays, so that the commands can share a process (see `mbeir_cot`)."""
    server.forget()
    return server


def environment(hub: HubRepos) -> dict[str, str]:
    return {"HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1", "HF_HOME": "/nonexistent"}


def push(hub: HubRepos, *arguments: str | Path, expect: int = 0, command: str = "push", **changed: str) -> str:
    done = mbeir_cot(command, *arguments, own_process=bool(changed), **(environment(hub) | changed))
    said = done.stdout + done.stderr
    assert done.returncode == expect, said
    assert TOKEN not in said
    return said


LOAD = """
import json, sys
from datasets import load_dataset
found = {}
for config in sys.argv[2].split(","):
    rows = load_dataset(sys.argv[1], config, split="train")
    streamed = load_dataset(sys.argv[1], config, split="train", streaming=True)
    found[config] = [len(rows), sum(1 for _ in streamed), rows[0]["id"], str(rows.features.get("query_image"))]
print(json.dumps(found))
"""


def loaded(hub: HubRepos, home: Path, configs: str) -> dict[str, list[object]]:
    """Loads the repository as a fresh machine does, in full and streamed."""
    fresh = os.environ | {"HF_ENDPOINT": hub.url, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}
    done = subprocess.run(
        [sys.executable, "-c", LOAD, REPO, configs], capture_output=True, text=True, env=fresh, timeout=200, check=False
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, list[object]] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_a_pushed_dataset_loads_in_every_config_and_the_local_one_stays(
    hub: HubRepos, pictured_build: Path, tmp_path: Path
) -> None:
    before = digests(pictured_build / "dataset")
    said = push(hub, pictured_build, REPO, "--with-images", "--private")
    assert "Pushed to" in said
    assert digests(pictured_build / "dataset") == before
    assert hub.repos["dataset", REPO].private
    assert hub.authorizations <= {f"Bearer {TOKEN}", ""}
    manifest = json.loads(hub.files("dataset", REPO)["manifest.json"])
    found = loaded(hub, tmp_path / "home", "default,rejected,with_images")
    assert found["default"][:2] == [manifest["records"]] * 2
    assert found["rejected"][:2] == [manifest["rejections"]] * 2
    assert found["with_images"][:2] == [manifest["records"]] * 2
    assert str(found["with_images"][3]).startswith("Image(")
    card = hub.files("dataset", REPO)["README.md"].decode()
    assert f'load_dataset("{REPO}", split="train")' in card
    for picture in re.findall(r"\]\((assets/[^)]+)\)", card):
        assert picture in hub.files("dataset", REPO)
    # a second push has nothing to do
    commits = len(hub.repos["dataset", REPO].messages)
    assert "nothing to do" in push(hub, pictured_build, REPO, "--with-images")
    assert len(hub.repos["dataset", REPO].messages) == commits


def test_without_images_card_and_manifest_leave_them_out(hub: HubRepos, pictured_build: Path, tmp_path: Path) -> None:
    push(hub, pictured_build, REPO)
    files = hub.files("dataset", REPO)
    assert not any(path.startswith("with_images/") for path in files)
    assert b"with_images" not in files["README.md"].split(b"---\n")[1]
    assert {file["path"] for file in json.loads(files["manifest.json"])["files"]} == set(files) - {
        "README.md",
        "manifest.json",
        ".gitattributes",
    }
    # then with images, and back: files that no longer belong are removed
    push(hub, pictured_build, REPO, "--with-images")
    assert any(path.startswith("with_images/") for path in hub.files("dataset", REPO))
    push(hub, pictured_build, REPO)
    assert hub.files("dataset", REPO) == files


def test_a_branch_is_created_and_a_dry_run_sends_nothing(hub: HubRepos, pictured_build: Path) -> None:
    assert "A dry run" in push(hub, pictured_build, REPO, "--dry-run")
    assert not hub.repos
    push(hub, pictured_build, REPO, "--revision", "v1")
    assert "manifest.json" in hub.files("dataset", REPO, "v1")
    assert "manifest.json" not in hub.files("dataset", REPO, "main")


def test_a_push_that_is_refused_midway_resumes_to_the_same_state(hub: HubRepos, pictured_build: Path) -> None:
    push(hub, pictured_build, "org/undisturbed", "--with-images")
    hub.objects.clear()
    hub.uploaded.clear()
    hub.fail = lambda method, path: 403 if "/commit/" in path else None
    said = push(hub, pictured_build, REPO, "--with-images", expect=2)
    assert "write access" in said
    assert "manifest.json" not in hub.files("dataset", REPO)
    hub.fail = lambda method, path: None
    push(hub, pictured_build, REPO, "--with-images")
    undisturbed = hub.files("dataset", "org/undisturbed")
    assert {path: data for path, data in hub.files("dataset", REPO).items() if path != "README.md"} == {
        path: data for path, data in undisturbed.items() if path != "README.md"
    }
    assert len(set(hub.uploaded)) == len(hub.uploaded) > 0, "an object was sent twice"


def test_a_push_that_is_killed_midway_resumes(hub: HubRepos, pictured_build: Path) -> None:
    reached = threading.Event()

    def slow(method: str, path: str) -> int | None:
        if method == "PUT" and len(hub.uploaded) >= 2:
            reached.set()
            time.sleep(2)
            return 0
        return None

    hub.fail = slow
    process = start("push", pictured_build, REPO, "--with-images", **environment(hub))
    assert reached.wait(60)
    kill(process)
    time.sleep(0.1)
    hub.fail = lambda method, path: None
    sent = set(hub.uploaded)
    assert "manifest.json" not in hub.files("dataset", REPO)
    push(hub, pictured_build, REPO, "--with-images")
    assert "manifest.json" in hub.files("dataset", REPO)
    assert sent
    assert len(set(hub.uploaded)) == len(hub.uploaded), "an object was sent twice"


@pytest.mark.parametrize(
    ("status", "words"),
    [(401, "HF_TOKEN"), (403, "write access"), (413, "quota")],
)
def test_refusals_of_the_hub_say_what_to_do(hub: HubRepos, pictured_build: Path, status: int, words: str) -> None:
    hub.fail = lambda method, path: status if path == "/api/repos/create" else None
    assert words in push(hub, pictured_build, REPO, expect=2)
    assert not hub.repos


def test_without_a_token(hub: HubRepos, pictured_build: Path) -> None:
    assert "hf auth login" in push(hub, pictured_build, REPO, expect=2, HF_TOKEN="")


def test_a_dry_run_without_network_shows_the_plan_within_seconds(pictured_build: Path) -> None:
    nowhere = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_TOKEN": TOKEN, "HF_HOME": "/nonexistent"}
    for changed, why in (({}, "cannot be reached"), ({"HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE")):
        began = time.monotonic()
        done = mbeir_cot("push", pictured_build, REPO, "--dry-run", own_process=True, **(nowhere | changed))
        assert done.returncode == 0, done.stderr
        assert time.monotonic() - began < 25, "it tried again and again"
        (line,) = [line for line in done.stdout.splitlines() if line.startswith("Not compared with the repository")]
        assert why in line
        assert "data/train-00000-of-00001.parquet" in done.stdout
        assert "nothing was sent" in done.stdout
    refused = mbeir_cot("push", pictured_build, REPO, own_process=True, **nowhere)
    assert (refused.returncode, "cannot be reached" in refused.stderr) == (2, True)


def test_without_a_network() -> None:
    refused = HfHubHTTPError.__bases__[0](f"[Errno 111] Connection refused, with {TOKEN}")
    os.environ["HF_TOKEN"] = TOKEN
    try:
        with pytest.raises(PushError) as caught, understood(REPO):
            raise refused
    finally:
        del os.environ["HF_TOKEN"]
    assert "the same command continues" in str(caught.value)
    assert TOKEN not in str(caught.value)


def richer(hub: HubRepos, *, records: int = 0, task: tuple[str, int] | None = None, branch: str = "main") -> dict[str, bytes]:
    """Makes the manifest on the Hub tell of so many more records, and of another dataset-task."""
    tree = hub.repos["dataset", REPO].tree(branch)
    assert tree is not None
    manifest = json.loads(tree["manifest.json"])
    manifest["records"] += records
    if task is not None:
        counts = {"queries": 9, "reasoning": 9, "bypass": 0, "rejected": {}}
        manifest["tasks"].append({"dataset": task[0], "task_id": task[1], **counts})
    manifest["of_another_version"] = True
    tree["manifest.json"] = json.dumps(manifest).encode()
    return dict(tree)


def test_a_larger_dataset_there_is_replaced_only_when_asked(hub: HubRepos, pictured_build: Path) -> None:
    push(hub, pictured_build, REPO)
    ours = json.loads(hub.files("dataset", REPO)["manifest.json"])
    there = richer(hub, records=5 * ours["records"])
    for arguments in ([], ["--dry-run"]):
        said = push(hub, pictured_build, REPO, *arguments, expect=2)
        assert f"the build keeps {ours['records']:,} records" in said
        assert f"has {6 * ours['records']:,}" in said
        assert "nothing was sent" in said
        assert hub.files("dataset", REPO) == there
    # what the message names: another revision, which is no replacement; and --replace
    push(hub, pictured_build, REPO, "--revision", "v2")
    assert hub.files("dataset", REPO) == there
    push(hub, pictured_build, REPO, "--replace")
    assert json.loads(hub.files("dataset", REPO)["manifest.json"]) == ours


def test_a_dataset_there_that_has_a_task_more(hub: HubRepos, pictured_build: Path, copied: Path) -> None:
    push(hub, pictured_build, REPO)
    there = richer(hub, task=("elsewhere", 9))
    said = push(hub, copied, REPO, expect=2)  # its build is not here: the default share
    assert "no record of elsewhere_task9 (9)" in said
    assert hub.files("dataset", REPO) == there
    tree = hub.repos["dataset", REPO].tree("main")
    assert tree is not None
    tree["manifest.json"] = b"cut o"
    assert "manifest.json of" in push(hub, copied, REPO, expect=2)
    hub.fail = lambda method, path: 500 if "resolve" in path else None
    assert "the Hub failed" in push(hub, copied, REPO, expect=2)
    hub.fail = lambda method, path: None
    push(hub, copied, REPO, "--replace")


def test_a_repository_with_other_content_is_left_alone(hub: HubRepos, pictured_build: Path) -> None:
    push(hub, pictured_build, REPO)
    repo = hub.repos["dataset", REPO]
    tree = repo.tree("main")
    assert tree is not None
    tree["thesis.pdf"] = b"%PDF"
    said = push(hub, pictured_build, REPO, "--with-images", expect=2)
    assert "thesis.pdf" in said
    assert "thesis.pdf" in hub.files("dataset", REPO)


def test_another_dataset_with_the_same_file_names_is_left_alone(hub: HubRepos, pictured_build: Path) -> None:
    """Its files have the same names as ours; only the manifest differs."""
    push(hub, pictured_build, REPO)
    tree = hub.repos["dataset", REPO].tree("main")
    assert tree is not None
    tree.clear()
    theirs = {"README.md": b"# theirs", "data/train-00000-of-00001.parquet": b"PAR1"}
    tree.update(theirs)
    said = push(hub, pictured_build, REPO, expect=2)
    assert "data/train-00000-of-00001.parquet" in said
    assert hub.files("dataset", REPO) == theirs


def test_a_new_branch_starts_from_main_and_ends_as_the_build(hub: HubRepos, pictured_build: Path) -> None:
    push(hub, pictured_build, REPO)
    tree = hub.repos["dataset", REPO].tree("main")
    assert tree is not None
    tree["data/train-00007-of-00009.parquet"] = b"PAR1 of an older build"
    push(hub, pictured_build, REPO, "--revision", "v2")
    assert "data/train-00007-of-00009.parquet" not in hub.files("dataset", REPO, "v2")
    assert "nothing to do" in push(hub, pictured_build, REPO, "--revision", "v2")


def test_private_data_is_not_sent_to_a_public_repository(hub: HubRepos, pictured_build: Path) -> None:
    push(hub, pictured_build, REPO)
    before = hub.files("dataset", REPO)
    said = push(hub, pictured_build, REPO, "--with-images", "--private", expect=2)
    assert "is public" in said
    assert hub.files("dataset", REPO) == before


def test_a_build_that_is_not_finished_is_not_pushed(hub: HubRepos, tmp_path: Path) -> None:
    assert "no finished dataset" in push(hub, tmp_path, REPO, expect=2)
    assert not hub.requests


def test_findings_are_accepted_by_row_and_the_card_says_so(hub: HubRepos, copied: Path, tmp_path: Path) -> None:
    """Following the remedy in the refusal makes the push succeed."""
    rewritten(copied, query_text="the key hf_abcdefghijklmnopqrstuvwxyz012345 on a poster")
    identifier = str(pq.read_table(next((copied / "data").glob("*.parquet")))["id"][0])
    said = push(hub, copied, REPO, expect=2)
    option = re.search(r"--allow [^`]+", said)
    assert option is not None
    assert option[0] == f"--allow {identifier}"
    done = push(hub, copied, REPO, *option[0].split())
    assert f"Accepted, and named in the card: {identifier}" in done
    files = hub.files("dataset", REPO)
    assert f"reviewed and accepted: `{identifier}`." in files["README.md"].decode()
    assert json.loads(files["manifest.json"])["accepted"] == [identifier]
    listed = tmp_path / "allowed"
    listed.write_text(f"{identifier}\ntrain/none/task0/9:1\n")
    again = push(hub, copied, REPO, "--allow-from", listed)
    assert "Nothing to accept in train/none/task0/9:1" in again
    # a malformed row cannot be accepted
    rewritten(copied, route="sideways")
    assert "route" in push(hub, copied, REPO, "--allow", identifier, expect=2)
