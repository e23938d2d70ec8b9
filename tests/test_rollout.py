"""Pairing of state outputs with inputs, and compiles of models that carry state."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import qcompile
from qcompile.backends.ort import Port
from qcompile.ir.errors import OptionError
from qcompile.rollout import Rollout, find_rollout

QUICK: dict[str, Any] = {"min_speedup": 0.01, "gate_time": "1s", "effort": "fast", "threads": 1}


def port(name: str, *shape: int | str | None, kind: str = "float") -> Port:
    return Port(name, f"tensor({kind})", shape)


@pytest.mark.parametrize(
    ("inputs", "outputs", "expected"),
    [
        ("x h c", "y hn cn", {"hn": "h", "cn": "c"}),
        ("input state sr", "output stateN", {"stateN": "state"}),
        ("x h0", "y h_out", {"h_out": "h0"}),
        (
            "ids past_key_values.0.key past_key_values.0.value",
            "logits present.0.key present.0.value",
            {
                "present.0.key": "past_key_values.0.key",
                "present.0.value": "past_key_values.0.value",
            },
        ),
        ("sample timestep", "out_sample", None),  # nothing but state would come out
        ("image", "image_out mask", None),  # nothing but state would go in
        ("x state", "y other", None),
    ],
)
def test_pairs_by_name(inputs: str, outputs: str, expected: dict[str, str] | None) -> None:
    found = find_rollout(
        [port(n, 1, "n", 8) for n in inputs.split()], [port(n, 1, None, 8) for n in outputs.split()]
    )
    assert (None if found is None else dict(found.state)) == expected


def test_shapes_and_types_must_agree() -> None:
    assert find_rollout([port("x", 4), port("h", 8)], [port("y", 4), port("hn", 9)]) is None
    whole = [port("x", 4), port("h", 8, kind="int64")]
    assert find_rollout(whole, [port("y", 4), port("hn", 8)]) is None


def test_asked_pairs() -> None:
    inputs, outputs = [port("x", 4), port("a", 8)], [port("y", 4), port("b", 8)]
    found = find_rollout(inputs, outputs, ["b=a"], 5)
    assert found == Rollout({"b": "a"}, 5, asked=True)
    assert (
        find_rollout([port("x", 4), port("h", 8)], [port("y", 4), port("hn", 8)], ["none"]) is None
    )


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ("b", "write OUTPUT=INPUT"),
        ("q=a", "has no output 'q'; it has y, b"),
        ("b=q", "has no input 'q'; it has x, a"),
        ("y=a", r"output 'y' is tensor\(float\) \[4\], input 'a' tensor\(float\) \[8\]"),
    ],
)
def test_refused_pairs(asked: str, message: str) -> None:
    inputs, outputs = [port("x", 4), port("a", 8)], [port("y", 4), port("b", 8)]
    with pytest.raises(OptionError, match=message):
        find_rollout(inputs, outputs, [asked])


CELL = """<ir_version: 8, opset_import: ["" : 17]>
g (float[1, 32] x, float[1, 32] h) => (float[1, 8] y, float[1, 32] hn)
<float one = {1.0}> {
    both = Concat<axis = 1>(x, h)
    gates = Gemm(both, wz, bz)
    z = Sigmoid(gates)
    new = Gemm(both, wn, bn)
    n = Tanh(new)
    rest = Sub(one, z)
    a = Mul(rest, n)
    b = Mul(z, h)
    hn = Add(a, b)
    y = Gemm(hn, wy, by)
}"""


@pytest.fixture(scope="module")
def cell(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = np.random.default_rng(0)
    shapes = {"wz": (64, 32), "bz": (32,), "wn": (64, 32), "bn": (32,), "wy": (32, 8), "by": (8,)}
    model = onnx.parser.parse_model(CELL)
    model.graph.initializer.extend(
        numpy_helper.from_array(rng.normal(0, 0.3, s).astype(np.float32), n)
        for n, s in shapes.items()
    )
    path = tmp_path_factory.mktemp("cell") / "cell.onnx"
    onnx.save(model, path)
    return path


def feeds() -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(1)
    zero = np.zeros((1, 32), np.float32)
    return [{"x": rng.normal(size=(1, 32)).astype(np.float32), "h": zero} for _ in range(24)]


def test_a_cell_is_judged_over_steps(cell: Path, tmp_path: Path) -> None:
    result = qcompile.compile(cell, calibration=feeds(), output=tmp_path / "o", steps=8, **QUICK)
    gate = result.report.data["gate"]
    rows = {(r["step"], r["output"]): r["sqnr_db"] for r in gate["steps"]}
    assert set(rows) == {(s, o) for s in (1, 4, 8) for o in ("y", "hn")}
    assert all(value > 10 for value in rows.values())
    assert any(c["name"] == "steps" and "at step 8" in c["text"] for c in gate["checks"])
    assert any("hn -> h" in note and "--state none" in note for note in gate["notes"])
    findings = result.report.data["calibration"]["findings"]
    assert any("calibrated on the states that follow" in text for text in findings)


def test_none_judges_single_calls(cell: Path, tmp_path: Path) -> None:
    result = qcompile.compile(
        cell, calibration=feeds(), output=tmp_path / "o", state="none", **QUICK
    )
    assert result.report.data["gate"]["steps"] == []
