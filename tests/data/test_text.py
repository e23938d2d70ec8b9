"""Text as samples: a tokenizer.json of a few words, windows of equal length, and what is missing in words."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import onnx
import pytest

from qcompile.data.inputs import InputSpec
from qcompile.data.sources import open_feeds
from qcompile.data.text import TextRecipe, open_text
from qcompile.ir.errors import BackendMissingError, CalibrationError

IDS = (InputSpec("input_ids", "int64", ("b", "s")),)
WORDS = ["<unk>", "the", "cat", "sat", "on", "mat"]


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    pytest.importorskip("tokenizers", reason="needs qcompile[text]")
    path = tmp_path / "tokenizer.json"
    content = {
        "version": "1.0",
        # of a checkpoint as published: padding and truncation must not reach the samples
        "truncation": {
            "direction": "Right",
            "max_length": 3,
            "strategy": "LongestFirst",
            "stride": 0,
        },
        "padding": None,
        "added_tokens": [],
        "normalizer": {"type": "Lowercase"},
        "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": None,
        "decoder": None,
        "model": {
            "type": "WordLevel",
            "vocab": {w: i for i, w in enumerate(WORDS)},
            "unk_token": "<unk>",
        },
    }
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def test_windows_do_not_overlap_and_the_rest_is_dropped(tokenizer: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("The cat sat\non the mat the dog", encoding="utf-8")
    feeds = open_text(text, IDS, TextRecipe(tokenizer, 3), "--calibration")
    assert [f["input_ids"].tolist() for f in feeds] == [[[1, 2, 3]], [[4, 1, 5]]]
    assert feeds.names == ["text.txt[0:3]", "text.txt[3:6]"]


def test_a_model_of_a_fixed_length_sets_the_window(tokenizer: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("the cat sat on", encoding="utf-8")
    specs = (InputSpec("input_ids", "int64", (1, 2)),)
    feeds = open_text(text, specs, TextRecipe(tokenizer, 128), "--calibration")
    assert [f["input_ids"].tolist() for f in feeds] == [[[1, 2]], [[3, 4]]]


def test_too_little_text_is_refused(tokenizer: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("the cat", encoding="utf-8")
    with pytest.raises(CalibrationError, match="has 2 tokens, fewer than one sample of 8"):
        open_text(text, IDS, TextRecipe(tokenizer, 8), "--calibration")


def test_a_file_that_is_no_tokenizer_is_refused(tokenizer: Path, tmp_path: Path) -> None:
    tokenizer.write_text("{}", encoding="utf-8")
    text = tmp_path / "text.txt"
    text.write_text("the cat", encoding="utf-8")
    with pytest.raises(CalibrationError, match=r"tokenizer\.json' cannot be read"):
        open_text(text, IDS, TextRecipe(tokenizer, 2), "--calibration")


def test_a_missing_package_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    text = tmp_path / "text.txt"
    text.write_text("the cat", encoding="utf-8")
    with pytest.raises(BackendMissingError, match=r"pip install 'qcompile\[text\]'"):
        open_text(text, IDS, TextRecipe(tmp_path / "tokenizer.json"), "--calibration")


def test_text_is_recognised_among_the_sources(tokenizer: Path, tmp_path: Path) -> None:
    text = tmp_path / "notes.md"
    text.write_text("the cat sat on", encoding="utf-8")
    feeds = open_feeds(text, IDS, text=TextRecipe(tokenizer, 2))
    assert len(feeds) == 2
    assert feeds.load(1)["input_ids"].dtype == onnx.helper.tensor_dtype_to_np_dtype(7)
