from __future__ import annotations

import errno
from pathlib import Path

import numpy as np
import pytest

from qcompile.artifact import new_artifact, open_artifact, write_manifest
from qcompile.ir.affine import TensorRange
from qcompile.ir.errors import OptionError, OutputError
from qcompile.ir.plan import LayerChoice, PrecisionPlan
from qcompile.lock import Lock


def build(path: Path, text: str, force: bool = False) -> None:
    with new_artifact(path, force) as work:
        (work / "model.onnx").write_text(text)
        write_manifest(work, {"qcompile": "0"})


def test_an_older_artifact_is_replaced_and_nothing_else_is_left(tmp_path: Path) -> None:
    build(tmp_path / "out", "one")
    build(tmp_path / "out", "two")
    assert (tmp_path / "out" / "model.onnx").read_text() == "two"
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_foreign_folder_is_refused_or_moved_aside(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.txt").write_text("mine")
    with pytest.raises(OutputError, match="not written by qcompile"):
        build(out, "x")
    build(out, "x", force=True)
    assert (tmp_path / "out.bak" / "thesis.txt").read_text() == "mine"


def test_an_error_leaves_the_old_artifact(tmp_path: Path) -> None:
    build(tmp_path / "out", "one")
    with pytest.raises(KeyboardInterrupt), new_artifact(tmp_path / "out") as work:
        (work / "model.onnx").write_text("half")
        raise KeyboardInterrupt
    with pytest.raises(OutputError, match="disk is full"), new_artifact(tmp_path / "out"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert (tmp_path / "out" / "model.onnx").read_text() == "one"
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_file_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    with pytest.raises(OutputError, match="is a file"):
        build(tmp_path / "out", "x")


def test_damage_is_named(tmp_path: Path) -> None:
    build(tmp_path / "out", "one")
    assert open_artifact(tmp_path / "out").damaged() == []
    (tmp_path / "out" / "model.onnx").write_text("other")
    assert open_artifact(tmp_path / "out").damaged() == [
        "model.onnx was changed since it was compiled"
    ]
    with pytest.raises(OutputError, match="does not exist"):
        open_artifact(tmp_path / "no")


def test_lock_round_trip_is_exact_and_differences_are_named(tmp_path: Path) -> None:
    ranges = {"x": TensorRange(np.float64(-0.1), np.float64(1 / 3), "mse")}
    plan = PrecisionPlan((LayerChoice("conv", "Conv", "int8", "why", 0.1, 5, 3),))
    lock = Lock({"model": "a" * 64}, ranges, plan, {"model.onnx": "b"})
    file = tmp_path / "qcompile.lock"
    file.write_text(lock.to_json())
    again = Lock.read(file)
    assert again.ranges["x"].high == 1 / 3
    assert again.to_json() == lock.to_json()
    again.check_inputs({"model": "a" * 64}, file)
    with pytest.raises(OptionError, match="model: locked aaaaaaaaaaaa, now cccc"):
        again.check_inputs({"model": "c" * 64}, file)
    with pytest.raises(OptionError, match=r"model\.onnx came out with other bytes"):
        again.check_outputs({"model.onnx": "z"}, file)
    with pytest.raises(OptionError, match="does not exist"):
        Lock.read(tmp_path / "none")
