"""`--show`: what a user says of outputs, by a word or by a function."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qcompile.ir.errors import OptionError
from qcompile.report_data.readings import Reader
from qcompile.report_data.show import Show, parse_show, show_by_function

HEAD = np.array([[10, 10, 4, 4, 0.9, 0.0, 0.1], [40, 40, 8, 8, 0.0, 0.8, 0.0]], np.float32)


def test_words_come_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("cat \ndog\n", encoding="utf-8")
    assert parse_show(f"boxes={tmp_path / 'names.txt'}") == Show("boxes", ("cat", "dog"))
    (tmp_path / "letters.txt").write_text("a\n \nb\n", encoding="utf-8")  # a space is a letter
    assert parse_show(f"text={tmp_path / 'letters.txt'}").words == ("a", " ", "b")
    assert parse_show("boxes") == Show("boxes") and parse_show(None) == Show()


@pytest.mark.parametrize(
    ("asked", "needed"),
    [
        ("boxs", "did you mean boxes"),
        ("text", "--show text=names.txt"),
        ("classes=none.txt", "cannot be read"),
        ("none.py:show", "does not exist"),
    ],
)
def test_what_cannot_be_read_says_what_is_needed(asked: str, needed: str) -> None:
    with pytest.raises(OptionError, match=needed):
        parse_show(asked)


@pytest.mark.parametrize("layout", ["v8", "v5", "end to end"])
def test_boxes_in_each_layout_of_a_head(layout: str) -> None:
    rows = np.zeros((30, 7), np.float32)
    rows[:2] = HEAD
    if layout == "v8":
        head = rows.T
    elif layout == "v5":
        head = np.concatenate([rows[:, :4], np.full((30, 1), 1.0), rows[:, 4:]], axis=1)
    else:
        corners = [rows[:, :2] - rows[:, 2:4] / 2, rows[:, :2] + rows[:, 2:4] / 2]
        best = [rows[:, 4:].max(1, keepdims=True), rows[:, 4:].argmax(1)[:, None]]
        head = np.concatenate([*corners, *best], axis=1)
    reader = Reader({}, "", Show("boxes", ("cat", "dog", "cow")))
    found = reader.read(head[None], head[None], (64, 64))["float"]
    assert [(b["label"], b["box"]) for b in found] == [
        ("cat", [10.0, 10.0, 4.0, 4.0]),
        ("dog", [40.0, 40.0, 8.0, 8.0]),
    ]


def test_text_by_the_user_s_letters() -> None:
    best = np.eye(4, dtype=np.float32)[[1, 1, 0, 1, 3, 2, 0, 0, 0]][None]
    reader = Reader({}, "", Show("text", ("a", "b", "c")))
    assert reader._sequence(best[0]) == "aacb"


def test_tokens_by_the_user_s_tokenizer() -> None:
    reader = Reader({}, "", decode=lambda ids: " ".join(f"<{i}>" for i in ids))
    assert reader._sequence(np.eye(9, dtype=np.float32)[[3, 4]]) == "<3> <4>"


def by(result: Any, pixels: tuple[int, int] | None = (8, 8)) -> dict[str, Any]:
    one = {"y": np.zeros(1)}
    return show_by_function(lambda outputs, feed: result, (one, one), {}, pixels)


def test_a_function_s_results() -> None:
    assert by("abc") == {"kind": "sequence", "float": "abc", "artifact": "abc"}
    assert by({"cat": 0.25, "dog": 0.75})["labels"] == ["dog", "cat"]
    assert by(np.eye(20))["float"].startswith("data:image/png")
    found = by([{"box": (1, 2, 3, 6), "label": "cat", "score": 0.5}])
    assert found["float"] == [{"box": [2.0, 4.0, 2.0, 4.0], "score": 0.5, "label": "cat"}]


@pytest.mark.parametrize("result", [3.5, [{"corner": 1}], None])
def test_a_result_that_cannot_be_shown(result: Any) -> None:
    with pytest.raises(OptionError, match="--show"):
        by(result)


def test_a_function_that_raises_is_named() -> None:
    def show(outputs: Any, feed: Any) -> str:
        raise KeyError("logits")

    one = {"y": np.zeros(1)}
    with pytest.raises(OptionError, match="KeyError: 'logits'"):
        show_by_function(show, (one, one), {}, None)
