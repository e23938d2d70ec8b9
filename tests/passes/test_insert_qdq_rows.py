"""Every row of the table is legal: a tiny model with the operator goes through InsertQDQ and runs."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from qcompile.ir.plan import INT8
from tests.passes.qdq_models import (
    VNNI,
    everything_int8,
    feed_for,
    insert,
    node_named,
    ops,
    run,
    sqnr_db,
    state_of,
    text_model,
)

RNG = np.random.default_rng(5)


def _ints(*values: int) -> npt.NDArray[np.int64]:
    return np.asarray(values, np.int64)


ARRAYS: dict[str, npt.NDArray[np.generic]] = {
    "w": (RNG.standard_normal((4, 4, 3, 3)) * 0.3).astype(np.float32),
    "m": (RNG.standard_normal((6, 5)) * 0.3).astype(np.float32),
    "zero": np.asarray(0, np.float32),
    "two": np.asarray(2, np.float32),
    "scales": np.asarray([1, 1, 2, 2], np.float32),
    "flat": _ints(1, -1),
    "first": _ints(0),
    "big": _ints(2, 4, 6, 6),
    "repeats": _ints(1, 1, 2, 1),
    "starts": _ints(1),
    "ends": _ints(4),
    "one": _ints(1),
    "pads": _ints(0, 0, 1, 1, 0, 0, 1, 1),
    "pick": _ints(2, 0),
    "pick_nd": np.asarray([[0, 1], [0, 3]], np.int64),
    "pick_elements": np.zeros((1, 4, 6, 6), np.int64),
    "halves": _ints(2, 2),
}

BODIES: dict[str, str] = {
    "Conv": "y = Conv (a, w)",
    "MatMul": "y = MatMul (a, m)",
    "Gemm": "f = Reshape (a, flat2)  y = Gemm (f, m)",
    "Add": "y = Add (a, a2)",
    "Mul": "y = Mul (a, a2)",
    "Sigmoid": "y = Sigmoid (a)",
    "LeakyRelu": "y = LeakyRelu <alpha = 0.1> (a)",
    "HardSwish": "y = HardSwish (a)",
    "HardSigmoid": "y = HardSigmoid (a)",
    "AveragePool": "y = AveragePool <kernel_shape = [2, 2]> (a)",
    "GlobalAveragePool": "y = GlobalAveragePool (a)",
    "ReduceMean": "y = ReduceMean <axes = [2, 3]> (a)",
    "Concat": "y = Concat <axis = 1> (a, a2)",
    "Where": "y = Where (c, a, a2)",
    "Relu": "y = Relu (a)",
    "Clip": "y = Clip (a, zero, two)",
    "MaxPool": "y = MaxPool <kernel_shape = [2, 2]> (a)",
    "Resize": 'y = Resize <mode = "nearest"> (a, , scales)',
    "Reshape": "y = Reshape (a, flat)",
    "Flatten": "y = Flatten (a)",
    "Squeeze": "y = Squeeze (a, first)",
    "Unsqueeze": "y = Unsqueeze (a, first)",
    "Identity": "y = Identity (a)",
    "Transpose": "y = Transpose <perm = [0, 2, 3, 1]> (a)",
    "Slice": "y = Slice (a, starts, ends, one)",
    "Gather": "y = Gather <axis = 1> (a, pick)",
    "GatherElements": "y = GatherElements <axis = 2> (a, pick_elements)",
    "GatherND": "y = GatherND (a, pick_nd)",
    "Split": "y, z = Split <axis = 1> (a, halves)",
    "Expand": "p = MaxPool <kernel_shape = [6, 6]> (a)  y = Expand (p, big)",
    "Tile": "y = Tile (a, repeats)",
    "DepthToSpace": "y = DepthToSpace <blocksize = 2> (a)",
    "SpaceToDepth": "y = SpaceToDepth <blocksize = 2> (a)",
    "Pad": "y = Pad (a, pads)",
    "ReduceMax": "y = ReduceMax <axes = [2, 3]> (a)",
    "ReduceMin": "y = ReduceMin <axes = [2, 3]> (a)",
}

RANKS = {"Gemm": 2, "Flatten": 2, "Reshape": 2, "Squeeze": 3, "Unsqueeze": 5, "GatherND": 3}
"""Ranks of the results that are not 4."""

STATIC = sorted(op for op, row in VNNI.ops.items() if row.static)


def test_every_row_has_a_model() -> None:
    assert sorted(BODIES) == STATIC


@pytest.mark.parametrize("op_type", STATIC)
def test_row_is_legal(op_type: str) -> None:
    """The node reads and writes Q/DQ; results agree at both ends of the optimizer."""
    body = BODIES[op_type]
    used = {
        k: v for k, v in ARRAYS.items() if f" {k}" in body.replace("(", "( ").replace(",", ", ")
    }
    if "flat2" in body:
        used["flat2"] = _ints(-1, 6)
        used.pop("flat", None)
    dims = ",".join("NABCD"[: RANKS.get(op_type, 4)])
    proto = text_model(
        f"""g (float[1,4,6,6] x, float[1,4,6,6] x2, bool[1,4,6,6] c) => (float[{dims}] y) {{
          a = Tanh (x)  a2 = Elu (x2)
          {body}
        }}""",
        **used,
    )
    state = state_of(proto)
    site_name = "n_y"
    state.plan = everything_int8(state)
    chosen = state.plan.by_origin()[site_name]
    assert chosen.precision == INT8
    made = insert(state)
    node = node_named(made, site_name)
    assert node.input[0 if op_type != "Where" else 1].endswith("_dequantized")
    if op_type not in ("MatMul", "Gemm"):
        assert "y_QuantizeLinear" in {n.name for n in made.graph.node}, ops(made)
    feed = feed_for(proto)
    plain = run(made, feed)[0]
    assert sqnr_db(run(proto, feed)[0], plain) > 25
    step = float(state.qparams["y"].scale) if "y" in state.qparams else 1e-3
    for level in ("ORT_ENABLE_BASIC", "ORT_ENABLE_ALL"):
        fused = run(made, feed, level)[0]
        np.testing.assert_allclose(fused, plain, atol=step * 1.01)
