"""init writes what a compile reads, and a template that nobody filled in is not compiled with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qcompile.cli import main
from tests.cli.conftest import write_model

Capture = pytest.CaptureFixture[str]


def test_an_untouched_template_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    write_model(tmp_path / "net.onnx")
    monkeypatch.chdir(tmp_path)
    assert main(["init", "net.onnx"]) == 0
    assert main([]) == 2
    said = capsys.readouterr().err
    assert "calib.py" in said and "load real samples here" in said
    assert not (tmp_path / "net.ort-int8").exists()


def test_init_answers_in_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    write_model(tmp_path / "net.onnx")
    monkeypatch.chdir(tmp_path)
    assert main(["init", "net.onnx", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["wrote"] == ["calib.py", "qcompile.toml"]
    assert [i["name"] for i in found["inputs"]] == ["image"]
    assert found["inputs"][0]["shape"][1:] == [3, 8, 8]
    assert main(["init", "net.onnx", "--json"]) == 2  # they are there already
