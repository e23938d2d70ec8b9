"""The learn stage in a whole compile: what was learned is delivered, recorded and replayed."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

import qcompile
from qcompile.artifact import file_sha256
from qcompile.data.inputs import Feed
from qcompile.learned_file import LEARNED

QUICK: dict[str, Any] = {"min_speedup": 0.01, "gate_time": "1s", "threads": 1, "search_time": "1s"}


@pytest.fixture(scope="module")
def built(dwcnn: Path, single_feeds: list[Feed], tmp_path_factory: pytest.TempPathFactory) -> Any:
    out = tmp_path_factory.mktemp("learned") / "build"
    return qcompile.compile(dwcnn, calibration=single_feeds, output=out, **QUICK)


def test_the_report_says_what_was_learned(built: Any) -> None:
    assert built.check().verdict == "delivered"
    assert any("weights of" in text for text in built.report.data["calibration"]["findings"])
    notes = [note["text"] for note in built.report.data["notes"]]
    assert any("weights learned, bias shifted" in text for text in notes)
    assert (built.path / LEARNED).stat().st_size < (built.path / "model.onnx").stat().st_size


def test_a_locked_compile_takes_the_recorded_weights(
    built: Any, dwcnn: Path, single_feeds: list[Feed], tmp_path: Path
) -> None:
    kept = tmp_path / "kept"
    kept.mkdir()
    for name in ("qcompile.lock", LEARNED):
        shutil.copy(built.path / name, kept / name)
    again = qcompile.compile(
        dwcnn,
        calibration=single_feeds,
        output=tmp_path / "again",
        locked=True,
        lock=kept / "qcompile.lock",
        **QUICK,
    )
    for name in ("model.onnx", "model.qdq.onnx", LEARNED, "qcompile.lock"):
        assert file_sha256(again.path / name) == file_sha256(built.path / name), name
    (kept / LEARNED).unlink()
    with pytest.raises(qcompile.QCompileError, match=r"keep learned\.npz"):
        qcompile.compile(
            dwcnn,
            calibration=single_feeds,
            output=tmp_path / "third",
            locked=True,
            lock=kept / "qcompile.lock",
            **QUICK,
        )


def test_fast_shifts_biases_alone_and_passes_can_be_switched_off(
    dwcnn: Path, single_feeds: list[Feed], tmp_path: Path
) -> None:
    fast = {**QUICK, "effort": "fast"}
    found = qcompile.compile(dwcnn, calibration=single_feeds, output=tmp_path / "a", **fast)
    assert any("of 0 layers learned" in t for t in found.report.data["calibration"]["findings"])
    off = qcompile.compile(
        dwcnn, calibration=single_feeds, output=tmp_path / "b", disable=("correct-bias",), **fast
    )
    assert not (off.path / LEARNED).exists()


def test_nothing_is_learned_from_random_data(dwcnn: Path, tmp_path: Path) -> None:
    found = qcompile.compile(dwcnn, output=tmp_path / "a", allow_random=True, **QUICK)
    assert not (found.path / LEARNED).exists()
