from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from schemas.errors import InputError
from tests.trainer.zero_shot.conftest import ccneg_content, tasks
from trainer.zero_shot import cc_neg


def test_cc_negs_end_is_what_counts(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cc_neg, "EVALUATED", 2)
    assert cc_neg.convert(root.parent / "ccneg_preprocessed.pt", root) == 2
    assert [query.pictures[0].path for query in tasks(root)["cc-neg"].queries()] == ["ccneg/images/1.jpg", "ccneg/images/2.jpg"]
    assert next(tasks(root)["cc-neg"].candidates()).parts == ("a dog, 1",)


class Command:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


def test_a_pickle_that_runs_a_program_is_refused(root: Path, tmp_path: Path) -> None:
    mark, source = tmp_path / "ran", tmp_path / "evil.pt"
    torch.save(ccneg_content(1) | {"extra": Command(mark)}, source)
    with pytest.raises(InputError, match=r"evil\.pt cannot be loaded as plain values"):
        cc_neg.convert(source, root)
    assert not mark.exists()
    assert not (root / cc_neg.CONVERTED).exists()
    torch.load(source, weights_only=False)
    assert mark.exists(), "it would have run"


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda content: content["annotations"].pop(), r"3 image_paths, but 2 annotations"),
        (lambda content: content["annotations"][1].pop("sop_data"), r"annotations\[1\]: the key 'sop_data' is missing"),
        (
            lambda content: content["image_paths"].__setitem__(2, "/elsewhere/x.jpg"),
            r"image_paths\[2\]: '/elsewhere/x.jpg' does not",
        ),
    ],
)
def test_what_converts_cc_neg_names_the_entry(edit: Callable[[Any], Any], message: str, root: Path, tmp_path: Path) -> None:
    content = ccneg_content(3)
    edit(content)
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(InputError, match=message):
        cc_neg.convert(tmp_path / "x.pt", root)
    assert not (root / cc_neg.CONVERTED).exists()
