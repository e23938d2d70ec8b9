"""Rows of the report: the graph, histograms and ranges, weights by channel."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as oir
import pytest

from qcompile.backends.tables import get_target
from qcompile.calibration import Calibration
from qcompile.calibrators.store import TensorStore
from qcompile.ir.affine import TensorRange
from qcompile.ir.load import load_model
from qcompile.ir.spec import QuantSpec
from qcompile.passes.quantizable import quantizable
from qcompile.report_data.graph_rows import graph_rows, node_names
from qcompile.report_data.rounded import rounded, rounded_all
from qcompile.report_data.tensor_rows import BINS, tensor_rows
from qcompile.report_data.weight_rows import GROUPS, weight_rows

MODEL = """
<ir_version: 8, opset_import: ["": 17]>
agraph (float[1, 3, 8, 8] image) => (float[1, 130, 8, 8] out)
<float[130, 3, 1, 1] w = {WEIGHT}, float zero = {0.0}>
{
    conv = Conv(image, w)
    relu = Relu(conv)
    out = Add(relu, zero)
}
"""


def model() -> oir.Model:
    weight = ", ".join(str(float(i // 3)) for i in range(390))
    return load_model(onnx.parser.parse_model(MODEL.replace("WEIGHT", weight))).model


def test_the_graph_says_who_reads_whom() -> None:
    loaded = model()
    names = node_names(loaded, quantizable(loaded, get_target("ort-int8", None)))
    rows = graph_rows(loaded, names)
    assert rows["inputs"] == ["image"]
    assert rows["outputs"] == ["out"]
    found = {row["op_type"]: row for row in rows["nodes"]}
    assert found["Conv"]["reads"] == ["image"]  # a weight is no edge
    assert found["Add"]["reads"] == ["relu"]
    assert found["Conv"]["origin"] == "Conv:conv"


def test_a_dimension_s_formula_is_no_shape() -> None:
    loaded = model()
    conv = next(iter(loaded.graph))
    conv.outputs[0].shape = oir.Shape([1, "batch", "floor(floor(height/2)/2) + 1"])
    rows = graph_rows(loaded, {n: n.op_type for n in loaded.graph})
    assert rows["nodes"][0]["shape"] == "1xbatchx?"


def test_many_channels_are_grouped_with_their_extremes() -> None:
    loaded = model()
    (row,) = weight_rows(quantizable(loaded, get_target("ort-int8", None)))
    assert (row["channels"], row["grouped"]) == (130, 3)
    assert len(row["low"]) == len(row["high"]) <= GROUPS
    assert row["low"][:2] == [0.0, 3.0]
    assert row["high"][:2] == [2.0, 5.0]
    assert row["high"][-1] == 129.0
    assert sum(row["histogram"]["counts"]) == 390


def calibration(values: np.ndarray, held: np.ndarray) -> Calibration:
    stores = {"x": TensorStore()}, {"x": TensorStore()}
    for store, seen in zip(stores, (values, held), strict=True):
        store["x"].observe(seen)
    same = {"x": "x", "x_reshaped": "x"}
    spec = QuantSpec("uint8", symmetric=False)
    return Calibration(stores[0], stores[1], 2, spec, method="minmax", same=same)


def test_a_tensor_shows_all_that_was_seen_and_what_is_clipped() -> None:
    values = np.concatenate([np.zeros(50), np.linspace(0.01, 1.0, 900), np.full(50, 4.0)])
    seen = calibration(values.astype(np.float32), np.array([8.0], np.float32))
    limits = TensorRange(np.float64(0.0), np.float64(1.0), "mse")
    first, alias = tensor_rows({"x": limits, "x_reshaped": limits}, seen)
    assert (first["low"], first["high"], first["method"]) == (0.0, 8.0, "mse")
    assert first["zeros"] == rounded(50 / 1001)
    assert first["clipped"] == rounded(51 / 1001)
    assert len(first["histogram"]["counts"]) <= BINS
    assert sum(first["histogram"]["counts"]) == 951
    assert alias["same_as"] == "x"
    assert "histogram" not in alias


def test_the_highest_value_is_not_clipped_by_its_own_range() -> None:
    seen = calibration(np.array([0.5, 1.0], np.float32), np.array([1.0], np.float32))
    (row,) = tensor_rows({"x": TensorRange(np.float64(0.0), np.float64(1.0))}, seen)
    assert row["clipped"] == 0.0


def test_ranges_of_a_lock_have_no_histogram() -> None:
    (row,) = tensor_rows({"x": TensorRange(np.float64(-1.0), np.float64(2.0), "mse")}, None)
    assert row == {"name": "x", "clip_low": -1.0, "clip_high": 2.0, "method": "mse"}


@pytest.mark.parametrize(
    ("value", "shown"), [(1.23456789, 1.2346), (0.0, 0.0), (float("inf"), None)]
)
def test_rounding(value: float, shown: float | None) -> None:
    assert rounded(value) == shown
    assert rounded_all([value]) == [shown]
