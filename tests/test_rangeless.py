"""Tensors that hold infinity: what touches them stays float, and the compile goes on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper, parser

import qcompile
from qcompile.ir.plan import FLOAT, INT8
from qcompile.passes.quantizable import classify
from qcompile.planner.default import default_plan
from qcompile.rangeless import float_reasons
from tests.passes.qdq_models import state_of, text_model

MASKED = """<ir_version: 8, opset_import: ["" : 17]>
g (float[1,8,32] x) => (float[1,8,32] y) <float limit = {2}> {
    q = MatMul (x, wq)
    k = MatMul (x, wk)
    kt = Transpose <perm = [0, 2, 1]> (k)
    scores = MatMul (q, kt)
    kept = Add (scores, diagonal)
    seen = Relu (kept)
    mask = Log (seen)
    masked = Add (scores, mask)
    p = Softmax <axis = -1> (masked)
    v = MatMul (x, wv)
    all = MatMul (p, v)
    large = Exp (v)
    below = Neg (large)
    nothing = Sqrt (below)
    good = Less (v, limit)
    y = Where (good, all, nothing)
}"""
"""Attention whose mask, computed at run time, is -inf where a score is negative.

What reads a large v is blanked out with NaN.
"""


def masked() -> onnx.ModelProto:
    rng = np.random.default_rng(0)
    model = parser.parse_model(MASKED)
    for name in ("wq", "wk", "wv"):
        array = rng.normal(0, 0.3, (32, 32)).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    diagonal = 1000 * np.eye(8, dtype=np.float32)
    model.graph.initializer.append(numpy_helper.from_array(diagonal, "diagonal"))
    return model


def test_attention_masked_by_infinity_and_blanked_with_nan_compiles(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    data = [{"x": rng.normal(size=(1, 8, 32)).astype(np.float32)} for _ in range(16)]
    result = qcompile.compile(
        masked(),
        calibration=data,
        output=tmp_path / "out",
        effort="fast",
        gate_time=0.2,
        min_speedup=0.01,
        threads=1,
    )
    assert result.verdict != "not delivered"
    add = next(
        layer
        for layer in result.report.layers
        if layer["op_type"] == "Add" and "no scale can hold 'mask'" in layer["reason"]
    )
    assert add["requested"] == FLOAT


TAKEN_IN = """g (float[1,3,8,8] x) => (float[1,4,4,4] y) {
    a = Conv (x, w)
    b = Relu (a)
    y = Conv (b, w2)
}"""


def test_a_conv_whose_relu_is_infinite_stays_float_and_so_does_its_reader() -> None:
    w, w2 = np.ones((4, 3, 3, 3), np.float32), np.ones((4, 4, 3, 3), np.float32)
    state = state_of(text_model(TAKEN_IN, w=w, w2=w2))
    reasons = float_reasons(classify(state), {"b": "sample 3 makes it infinite"})
    assert reasons == dict.fromkeys(
        ("n_a", "n_y"), "no scale can hold 'b': sample 3 makes it infinite"
    )
    plan = default_plan(state, reasons).by_origin()
    assert {name: layer.precision for name, layer in plan.items()} == dict.fromkeys(plan, FLOAT)
    assert plan["n_a"].reason == reasons["n_a"]
    assert default_plan(state).by_origin()["n_a"].precision == INT8
