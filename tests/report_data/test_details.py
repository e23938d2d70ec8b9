"""A real compile's report holds what its page shows, and the page lies beside it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import qcompile
from qcompile.artifact import open_artifact
from qcompile.cli import main
from qcompile.report_page.page import render_page

Feeds = list[dict[str, npt.NDArray[np.float32]]]


@pytest.fixture(scope="module")
def result(
    dwcnn: Path, calibration_feeds: Feeds, tmp_path_factory: pytest.TempPathFactory
) -> qcompile.CompileResult:
    folder = tmp_path_factory.mktemp("details") / "o"
    options: dict[str, Any] = {"gate_time": "0.5s", "effort": "fast", "threads": 1}
    return qcompile.compile(
        dwcnn, output=folder, calibration=calibration_feeds, min_speedup=0.01, **options
    )


def test_every_layer_has_its_node_with_error_and_time(result: qcompile.CompileResult) -> None:
    data = result.report.data
    nodes = {row["origin"]: row for row in data["graph"]["nodes"]}
    assert data["left_out"] == []
    for layer in data["layers"]:
        node = nodes[layer["origin"]]
        assert node["sqnr_db"] is not None and node["sqnr_db"] > 5
    assert sum(n["artifact_ns"] for n in nodes.values()) > 0


def test_time_by_operator_adds_up_to_the_latency(result: qcompile.CompileResult) -> None:
    data = result.report.data
    for side, name in (("before", "float"), ("after", "artifact")):
        total = sum(row["ns"] for row in data["operators"][side])
        median = data["gate"]["speed"]["models"][name]["p50_ms"] * 1e6
        assert total == pytest.approx(median, rel=0.01)


def test_the_worst_samples_are_those_of_the_gate(result: qcompile.CompileResult) -> None:
    data = result.report.data
    first = data["samples"][0]
    assert first["name"] == data["gate"]["outputs"][0]["worst_sample"]
    assert first["image"].startswith("data:image/png")
    assert first["outputs"][0]["shape"] == "32x10"
    assert len(first["outputs"][0]["float"]) == 5


def test_the_page_is_that_of_the_report(result: qcompile.CompileResult) -> None:
    page = (result.path / "report.html").read_text(encoding="utf-8")
    report = json.loads((result.path / "report.json").read_text(encoding="utf-8"))
    assert page == render_page(report)


def test_the_command_makes_it_again(
    result: qcompile.CompileResult, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = result.path / "report.html"
    before = page.read_bytes()
    page.write_text("old", encoding="utf-8")
    assert open_artifact(result.path).damaged()
    assert main(["report", str(result.path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["bytes"] == len(before)
    assert page.read_bytes() == before
    assert open_artifact(result.path).damaged() == []
    assert main(["report", str(result.path), "-o", str(tmp_path / "a" / "b.html")]) == 0
    assert (tmp_path / "a" / "b.html").read_bytes() == before


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "cannot be read"),
        ("{", "is no JSON"),
        ('{"version": 99}', "no report of version 1"),
        ("[]", "no report of version 1"),
    ],
)
def test_what_is_no_report_is_refused(
    content: str | None, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if content is not None:
        (tmp_path / "report.json").write_text(content, encoding="utf-8")
    assert main(["report", str(tmp_path)]) == 2
    assert said in capsys.readouterr().err
