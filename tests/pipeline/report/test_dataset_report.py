"""The report in a real browser, and `show` in the terminal."""

from __future__ import annotations

import json
import re
import shutil
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.dataset.built_dataset import BuiltDataset
from pipeline.report.dataset_report import build_page
from pipeline.report.page import Example, Page, render
from tests.support.browser import CHROMIUM, DRIVER, browser
from tests.support.builds import digests, rows
from tests.support.cli import mbeir_cot

pytestmark = [pytest.mark.slow]
needs_chromium = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="no chromium and chromedriver")


@pytest.fixture(scope="module")
def report(pictured_build: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report") / "report.html"
    before = digests(pictured_build / "dataset")
    done = mbeir_cot("report", pictured_build, "--out", path, "--records", "40", "--rejections", "10", "--price-in", "1")
    assert done.returncode == 0, done.stderr
    assert digests(pictured_build / "dataset") == before
    return path


def test_the_page_needs_no_network_and_is_labelled(report: Path) -> None:
    text = report.read_text()
    outside = text[: text.index("<script")] + text[text.rindex("</script>") :]
    assert not re.findall(r"""(?:src|href)=["'](?!data:|#)""", outside)
    assert "SYNTHETIC" in text[:200_000]
    examples = json.loads(re.search(r'id="examples-data">(.*?)</script>', text, re.DOTALL)[1])  # type: ignore[index]
    assert len(examples) == 50
    reasoning = [e for e in examples if e["tags"]["route"] == "reasoning"]
    assert all(e["exchanges"] and e["lines"] and e["strong"] for e in reasoning)
    assert "<answer>" in reasoning[0]["exchanges"][1]["answer"]
    assert any(e["exchanges"] for e in examples if e["tags"]["route"] == "rejected")
    assert all(e["positive_text"] or e["positive_picture"] for e in reasoning)


@needs_chromium
@pytest.mark.parametrize("width", [1280, 390])
def test_it_opens_in_a_browser_and_its_filters_work(report: Path, width: int) -> None:
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import Select

    with browser(width, 900) as page:
        page.get(report.as_uri())
        assert [entry for entry in page.get_log("browser") if entry["level"] == "SEVERE"] == []
        assert page.execute_script("return document.documentElement.scrollWidth") <= width
        assert len(page.find_elements(By.CSS_SELECTOR, ".plot .main-svg")) >= 4
        cards = lambda: page.find_elements(By.CSS_SELECTOR, ".example")  # noqa: E731
        assert len(cards()) == 20
        page.execute_script("document.getElementById('more').click()")  # a real click would miss because of smooth scrolling
        assert len(cards()) == 40
        Select(page.find_element(By.CSS_SELECTOR, "select[data-filter=route]")).select_by_value("rejected")
        assert len(cards()) == 10
        assert all("rejected" in card.text for card in cards())
        reasons = Select(page.find_element(By.CSS_SELECTOR, "select[data-filter=reason]"))
        reasons.select_by_index(1)
        code = reasons.first_selected_option.get_attribute("value")
        assert cards()
        assert all(code in card.text for card in cards())
        page.find_element(By.ID, "search").send_keys("no such words anywhere")
        assert cards() == []
        assert "none fits" in page.find_element(By.ID, "count").text


@needs_chromium
def test_it_works_by_keyboard_and_follows_the_theme(report: Path) -> None:
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    with browser(dark=True) as page:
        page.get(report.as_uri())
        assert page.execute_script("return document.documentElement.dataset.theme") == "dark"
        body = page.find_element(By.TAG_NAME, "body")
        body.send_keys("j")
        first = page.switch_to.active_element
        assert "example" in (first.get_attribute("class") or "")
        first.send_keys("j")
        second = page.switch_to.active_element
        assert second != first
        second.send_keys("k")
        assert page.switch_to.active_element == first
        first.send_keys("o")
        assert first.find_element(By.TAG_NAME, "details").get_attribute("open") is not None
        first.send_keys("/")
        assert page.switch_to.active_element.get_attribute("id") == "search"
        page.switch_to.active_element.send_keys(Keys.ESCAPE)
        page.execute_script("document.getElementById('theme').click()")
        assert page.execute_script("return document.documentElement.dataset.theme") == "light"


def test_texts_cannot_become_markup() -> None:
    evil = "</script><script>alert(1)</script><img src=x onerror=alert(1)>"
    page = Page(evil, "", evil, (), examples=[Example(evil, {"route": evil}, evil, evil, lines=[(evil, evil)])])
    text = render(page)
    assert "<script>alert" not in text
    assert "<img src=x" not in text


@needs_chromium
def test_the_page_of_a_hundred_thousand_records_opens_quickly(pictured_build: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(pictured_build / "dataset", copy)
    manifest = json.loads((copy / "manifest.json").read_text())
    file = next(file for file in manifest["files"] if file["path"].startswith("data/"))
    table = pq.read_table(copy / file["path"])
    times = 100_000 // len(table) + 1
    pq.write_table(pa.concat_tables([table] * times), copy / file["path"])
    manifest["records"] *= times
    (copy / "manifest.json").write_text(json.dumps(manifest))
    text = render(build_page(BuiltDataset.open(copy)))
    assert len(text.encode()) <= 15e6
    assert "A sample: 300 of" in text
    path = tmp_path / "report.html"
    path.write_text(text)
    with browser() as page:
        page.get("about:blank")
        began = time.monotonic()
        page.get(path.as_uri())
        assert page.execute_script("return document.querySelectorAll('.example').length") == 20
        assert time.monotonic() - began < 20  # 3 s on an idle machine; here tests share two cores


def test_show_prints_everything_about_a_row(pictured_build: Path) -> None:
    record = next(row for row in rows(pictured_build / "dataset") if row["route"] == "reasoning")
    done = mbeir_cot("show", pictured_build, record["id"])
    assert done.returncode == 0, done.stderr
    for wanted in (
        record["instruction"],
        record["answer"],
        record["provenance"]["prompt_sha256"],
        "<reasoning>",
        "reason, attempt 1",
    ):
        assert wanted in done.stdout
    refused = rows(pictured_build / "dataset", "rejected")[0]
    done = mbeir_cot("show", pictured_build, refused["id"])
    assert f"{refused['stage']}: {refused['reason']}" in done.stdout
    done = mbeir_cot("show", pictured_build, "train/cirr/task7/8:999999")
    assert done.returncode == 2
    assert "has no row" in done.stderr


def test_a_dataset_without_its_build_can_be_shown(pictured_build: Path, tmp_path: Path) -> None:
    copy = tmp_path / "downloaded"
    shutil.copytree(pictured_build / "dataset", copy)
    record = next(row for row in rows(copy) if row["route"] == "reasoning")
    done = mbeir_cot("show", copy, record["id"])
    assert record["answer"] in done.stdout
    assert "is not here" in done.stdout
    done = mbeir_cot("report", copy, "--out", tmp_path / "r.html")
    assert done.returncode == 0, done.stderr
    assert "are not shown" in (tmp_path / "r.html").read_text()


def test_a_report_of_a_missing_build_is_an_error(tmp_path: Path) -> None:
    done = mbeir_cot("report", tmp_path)
    assert done.returncode == 2
    assert "no finished dataset" in done.stderr
