"""Shapes for one feed: what can be inferred is, what cannot is read from a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as oir
import pytest

from qcompile import trace

INFERRED = """<ir_version: 8, opset_import: ["" : 17]>
m (float[n, s, 4] x) => (float[n, s, 8] y) <float[4, 8] w = {
0,0,0,0,0,0,0,0, 0,0,0,0,0,0,0,0, 0,0,0,0,0,0,0,0, 0,0,0,0,0,0,0,0}> { y = MatMul (x, w) }"""

DEPENDS = """<ir_version: 8, opset_import: ["" : 17]>
m (float[n, s, 4] x) => (float[a, b] y) {
  found = NonZero (x) turned = Transpose <perm = [1, 0]> (found)
  rows = Cast <to = 1> (turned) back = Cast <to = 1> (found) y = MatMul (rows, back) }"""

FEED = {"x": np.ones((2, 3, 4), "f")}


def counts(text: str, tmp_path: Path) -> list[int]:
    model = oir.from_proto(onnx.parser.parse_model(text))
    return list(trace.mac_counts(model, FEED, tmp_path).values())


def test_shapes_that_follow_from_the_inputs_need_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("it was run")

    monkeypatch.setattr(trace, "shapes_seen", never)
    assert counts(INFERRED, tmp_path) == [2 * 3 * 4 * 8]


def test_shapes_that_depend_on_values_are_read(tmp_path: Path) -> None:
    # all 24 elements are found: (24, 3) x (3, 24)
    assert counts(DEPENDS, tmp_path) == [24 * 3 * 24]
