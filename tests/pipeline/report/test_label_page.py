"""The page of labels in a real browser, and the way from it to the figures of agreement."""

from __future__ import annotations

import json
import re
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from pipeline.dataset.built_dataset import BuiltDataset
from pipeline.report.label_page import label_page
from pipeline.report.label_sample import label_items
from pipeline.report.page import embedded
from tests.support.browser import CHROMIUM, DRIVER, browser
from tests.support.builds import digests
from tests.support.cli import mbeir_cot

pytestmark = [pytest.mark.slow]
needs_chromium = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="no chromium and chromedriver")


@pytest.fixture(scope="module")
def page_file(pictured_build: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("labels") / "labels.html"
    done = mbeir_cot("label", pictured_build, "-n", "24", "--out", path)
    assert done.returncode == 0, done.stderr
    assert "with 24 items" in done.stdout
    return path


def data_of(text: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(re.search(r'id="data">(.*?)</script>', text, re.DOTALL)[1])  # type: ignore[index]
    return found


def test_the_page_is_self_contained_and_does_not_tell_the_decisions(page_file: Path, pictured_build: Path) -> None:
    text = page_file.read_text()
    data = data_of(text)
    assert not re.findall(r"""(?:src|href)=["'](?!data:|#)""", text.replace(re.search(r"<script>.*", text, re.DOTALL)[0], ""))  # type: ignore[index]
    assert "SYNTHETIC" in text
    kinds = [item["kind"] for item in data["items"]]
    assert kinds == ["verdict"] * 12 + ["route"] * 12
    told = {"kind", "id", "shown", "instruction", "text", "picture"}
    judged = told | {"facets", "answer", "positive_text", "positive_picture"}
    assert all(set(item) == (judged if item["kind"] == "verdict" else told) for item in data["items"])
    assert all(item["answer"] and item["facets"] for item in data["items"][:12])
    pictures = {item[key] for item in data["items"] for key in ("picture", "positive_picture") if item.get(key)}
    assert pictures == set(data["pictures"])
    decisions = {(item.kind, item.id): item.decision for item in label_items(BuiltDataset.open(pictured_build))}
    assert {decisions[item["kind"], item["id"]] for item in data["items"]} == {True, False}


@needs_chromium
def test_it_is_worked_by_keyboard_and_its_labels_give_the_figures(
    page_file: Path, pictured_build: Path, tmp_path: Path
) -> None:
    from selenium.webdriver.common.by import By

    copy = shutil.copytree(pictured_build, tmp_path / "build")
    with browser() as page:
        page.execute_cdp_cmd("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(tmp_path)})
        page.get(page_file.as_uri())
        assert [entry for entry in page.get_log("browser") if entry["level"] == "SEVERE"] == []
        items = data_of(page_file.read_text())["items"]
        shown = lambda: page.find_element(By.CSS_SELECTOR, "#item .id").text  # noqa: E731

        def press(keys: str) -> None:
            for key in keys:
                page.switch_to.active_element.send_keys(key)

        assert shown() == items[0]["id"]
        assert page.find_element(By.CSS_SELECTOR, "#item .strong").text == items[0]["answer"]
        assert page.find_elements(By.CSS_SELECTOR, "#item img")
        for item in items[:12]:
            assert shown() == item["id"]
            press("y")
        assert page.find_element(By.CSS_SELECTOR, "#question").text.startswith("Does it take a step of thought")
        press("nnuyny")
        press("k")
        pressed = page.find_element(By.CSS_SELECTOR, ".choices [aria-pressed=true]")
        assert pressed.get_attribute("data-value") == "yes"
        press("x")
        assert not page.find_elements(By.CSS_SELECTOR, ".choices [aria-pressed=true]")
        assert page.find_element(By.ID, "done").text == "17 of 24 labelled"
        page.refresh()  # what was labelled is kept in the browser, and the first open item comes up
        assert page.find_element(By.ID, "done").text == "17 of 24 labelled"
        assert shown() == items[17]["id"]
        press("s")
        saved = tmp_path / "labels.json"
        until = time.monotonic() + 20
        while not saved.is_file() and time.monotonic() < until:
            time.sleep(0.1)
        assert page.execute_script("return document.documentElement.scrollWidth") <= 1280
    file = json.loads(saved.read_text())
    assert [one["value"] for one in file["labels"]] == ["yes"] * 12 + ["no", "no", "unsure", "yes", "no"]
    before = digests(copy / "dataset")
    done = mbeir_cot("agreement", copy, saved, "--json")
    assert done.returncode == 0, done.stderr
    assert digests(copy / "dataset") == before
    figures = {(one["kind"], one["family"]): one for one in json.loads(done.stdout)}
    assert figures["verdict", "all"]["precision"]["value"] == 1.0
    assert (figures["verdict", "all"]["labels"], figures["route", "all"]["labels"]) == (12, 4)
    assert figures["route", "all"]["unsure"] == 1
    done = mbeir_cot("agreement", copy, saved, "--card")
    assert "verdict" in done.stdout
    assert "People judged a sample" in (copy / "dataset" / "README.md").read_text()
    opened = BuiltDataset.open(copy)
    assert not list(opened.mismatches())
    assert opened.manifest.agreement[0].labels == 12


@needs_chromium
def test_a_saved_file_is_opened_again_and_texts_are_never_markup(page_file: Path, tmp_path: Path) -> None:
    from selenium.webdriver.common.by import By

    text = page_file.read_text()
    data = data_of(text)
    hostile = '</script><script>document.title = "broken"</script><img src=x onerror="document.title = \'broken\'">'
    for item in data["items"]:
        item |= {"instruction": hostile, "text": hostile}
        if item["kind"] == "verdict":
            item |= {"answer": hostile, "facets": [[hostile, hostile]], "positive_text": hostile}
    changed = tmp_path / "hostile.html"
    changed.write_text(text.replace(re.search(r'id="data">(.*?)</script>', text, re.DOTALL)[1], str(embedded(data))))  # type: ignore[index]
    first = data["items"][0]
    labels = [{key: first[key] for key in ("kind", "id", "shown")} | {"value": "no"}]
    labels.append(labels[0] | {"id": "train/cirr/task7/8:999999"})
    (tmp_path / "labels.json").write_text(json.dumps({"labels": labels}))
    (tmp_path / "other.json").write_text("no labels")
    with browser(390, 800) as page:
        page.get(changed.as_uri())
        page.find_element(By.ID, "open").send_keys(str(tmp_path / "labels.json"))
        until = time.monotonic() + 10
        while "1 of 2 labels" not in page.find_element(By.ID, "message").text and time.monotonic() < until:
            time.sleep(0.1)
        assert page.find_element(By.ID, "done").text == "1 of 24 labelled"
        for _ in range(23):
            # a real click would miss because of smooth scrolling
            page.execute_script("document.querySelector('button[data-value=unsure]').click()")
        assert "All are labelled" in page.find_element(By.ID, "message").text
        assert "labels" in page.title
        assert hostile in page.find_element(By.CSS_SELECTOR, "#item .query-text").text
        assert not page.find_elements(By.CSS_SELECTOR, "#item script, #item [onerror]")
        assert page.execute_script("return document.documentElement.scrollWidth") <= 390
        page.find_element(By.ID, "open").send_keys(str(tmp_path / "other.json"))
        until = time.monotonic() + 10
        while "holds no labels" not in page.find_element(By.ID, "message").text and time.monotonic() < until:
            time.sleep(0.1)
        assert "holds no labels" in page.find_element(By.ID, "message").text


def test_a_dataset_without_its_images_is_an_error(pictured_build: Path, tmp_path: Path) -> None:
    shutil.copytree(pictured_build / "dataset", tmp_path / "dataset")
    done = mbeir_cot("label", tmp_path / "dataset")
    assert done.returncode == 2
    assert "images cannot be shown" in done.stderr
    with pytest.raises(Exception, match="no verdict and no route"):
        label_page(_without_rows(pictured_build, tmp_path / "empty"), 10)


def _without_rows(build: Path, place: Path) -> BuiltDataset:
    copy = BuiltDataset.open(shutil.copytree(build, place))
    return BuiltDataset(copy.directory, copy.build, copy.manifest.model_copy(update={"files": ()}))
