"""Factors per channel: which tensors can be scaled together, and that the result stays the same."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as oir
import pytest

from qcompile.ir.errors import PassError
from qcompile.ir.manager import CompileState, PassManager
from qcompile.passes.fold_scales import FoldScales
from qcompile.passes.linear import as_linear
from qcompile.passes.output_limits import output_limits
from qcompile.passes.scale_regions import Region, find_regions
from tests.passes.qdq_models import feed_for, initializers, run, state_of, text_model

RNG = np.random.default_rng(0)
ARRAYS = {
    "w1": (4, 3, 3, 3), "w2": (4, 4, 1, 1), "w3": (5, 4, 3, 3), "w4": (4, 1, 3, 3), "b": (4,),
    "s": (4, 1, 1), "g": (4,), "m": (4, 6), "n": (3, 4), "a": (4, 1, 1),
}  # fmt: skip
WEIGHTS = {k: RNG.standard_normal(v).astype(np.float32) for k, v in ARRAYS.items()}
SIX = {"zero": np.array(0, np.float32), "six": np.array(6, np.float32)}
IN, OUT = "g (float[1,3,8,8] x) => (float[1,5,6,6] y) {", "y = Conv (t, w3) }"

CHAIN = f"{IN} c = Conv <pads = [1, 1, 1, 1]> (x, w1, b) t = Relu (c) {OUT}"
RESIDUAL = (
    f"{IN} c = Conv <pads = [1, 1, 1, 1]> (x, w1, b) r = LeakyRelu (c) d = Conv (r, w2) "
    f"e = PRelu (d, s) t = Add (r, e) {OUT}"
)
GATE = (
    f"{IN} c = Conv <pads = [1, 1, 1, 1]> (x, w1, b) r = Relu (c) p = GlobalAveragePool (r) "
    f"q = Conv (p, w2) h = HardSigmoid (q) t = Mul (r, h) {OUT}"
)
CONSTANTS = (
    f"{IN} c = Conv <pads = [1, 1, 1, 1]> (x, w1) u = Add (c, a) v = MaxPool <kernel_shape = [3, 3], "
    f"pads = [1, 1, 1, 1]> (u) k = Mul (v, s) t = Add (k, a) {OUT}"
)
DEPTHWISE = (
    f"{IN} c = Conv <pads = [1, 1, 1, 1]> (x, w1, b) r = Relu (c) "
    f"t = Conv <group = 4, pads = [1, 1, 1, 1]> (r, w4, b) {OUT}"
)
NORM = """g (float[2,5,3] x) => (float[2,5,6] y) {
  i = MatMul (x, n) t = LayerNormalization <axis = -1> (i, g, b) y = MatMul (t, m) }"""
TURNED = """g (float[1,3,8,8] x) => (float[1,8,8,6] y) {
  c = Conv <pads = [1, 1, 1, 1]> (x, w1, b) t = Transpose <perm = [0, 2, 3, 1]> (c) y = MatMul (t, m) }"""


def state(graph: str) -> tuple[onnx.ModelProto, CompileState]:
    used = {k: v for k, v in {**WEIGHTS, **SIX}.items() if f" {k}" in graph}
    proto = text_model(graph, **used)
    return proto, state_of(proto, calibrate=False)


def regions(graph: str) -> tuple[list[Region], dict[str, str]]:
    found, refused = find_regions(state(graph)[1].model.graph)
    return found, dict(refused)


@pytest.mark.parametrize(
    ("graph", "names"),
    [
        (CHAIN, {"c": {"c", "t"}}),
        (RESIDUAL, {"c": {"c", "r", "d", "e", "t"}}),
        (GATE, {"c": {"c", "r", "p", "t"}}),
        (CONSTANTS, {"k": {"k", "t"}}),
        (DEPTHWISE, {"c": {"c", "r"}, "t": {"t"}}),
        (NORM, {"t": {"t"}}),
        (TURNED, {"c": {"c", "t"}}),
    ],
)
def test_scaled_together_and_the_same_to_the_bit(graph: str, names: dict[str, set[str]]) -> None:
    proto, one = state(graph)
    found, _ = find_regions(one.model.graph)
    assert {r.name: {v.name for v in r.tensors} for r in found} == names
    exponents = {r.name: tuple(int(k) for k in RNG.integers(-5, 6, r.channels)) for r in found}
    manager = PassManager([FoldScales(exponents)])
    manager.run(one)
    assert manager.records[0].changed == len(found)
    feed = feed_for(proto)
    made = oir.to_proto(one.model)
    np.testing.assert_array_equal(run(proto, feed)[0], run(made, feed)[0])
    changed = [k for k, v in initializers(made).items() if not np.array_equal(v, WEIGHTS.get(k))]
    assert changed


def test_rows_are_divided_and_columns_multiplied() -> None:
    _, one = state(CHAIN)
    FoldScales({"c": (0, 1, 2, -1)}).run(one)
    found, factor = initializers(oir.to_proto(one.model)), np.array([1, 2, 4, 0.5], np.float32)
    np.testing.assert_array_equal(found["w1"], WEIGHTS["w1"] / factor[:, None, None, None])
    np.testing.assert_array_equal(found["b"], WEIGHTS["b"] / factor)
    np.testing.assert_array_equal(found["w3"], WEIGHTS["w3"] * factor[None, :, None, None])


@pytest.mark.parametrize(
    ("graph", "why"),
    [
        (CHAIN.replace("Relu", "Sigmoid"), "Sigmoid 'n_t' does not let a factor"),
        (CHAIN.replace("Relu", "HardSwish"), "HardSwish 'n_t'"),
        (CHAIN.replace("[1,5,6,6] y)", "[1,5,6,6] y, float[1,4,8,8] t)"), "is an output"),
        (CHAIN.replace("Relu (c)", "Clip (c, zero, six)"), "may cut off any channel"),
        (CHAIN.replace("Relu (c)", "Mul (c, c)"), "Mul 'n_t'"),
        (CHAIN.replace("Relu (c)", "Concat <axis = 1> (c)"), "Concat"),
    ],
)
def test_what_a_factor_cannot_pass(graph: str, why: str) -> None:
    found, refused = regions(graph)
    assert not found
    assert why in refused["c"]


def test_a_name_that_is_no_region() -> None:
    _, one = state(CHAIN)
    with pytest.raises(PassError, match="compile again without the lock"):
        FoldScales({"t": (0, 0, 0, 0)}).run(one)
    with pytest.raises(PassError, match="2 factors"):
        FoldScales({"c": (0, 0)}).run(one)


CLIPPED = (
    f"{IN} q = Sigmoid (x) c = Conv <pads = [1, 1, 1, 1]> (q, w1, b) t = Clip (c, zero, six) {OUT}"
)


def test_channels_that_a_clip_never_cuts_off_are_scaled_up_to_it() -> None:
    wide = WEIGHTS["w1"] * np.array([0.01, 0.1, 0.02, 5], np.float32)[:, None, None, None]
    arrays = {
        "w1": wide,
        "b": np.array([0.1, 0.2, -0.5, 1], np.float32),
        "w3": WEIGHTS["w3"],
        **SIX,
    }
    proto = text_model(CLIPPED, **arrays)
    one = state_of(proto, calibrate=False)
    region = find_regions(one.model.graph)[0][0]
    assert region.fixed.tolist() == [0, 0, 0, 1]
    assert (region.least[:3] * 6 >= 0).all()
    floor = np.ceil(np.log2(np.maximum(region.least, 2.0**-6)))
    exponents = tuple(int(k) for k in np.where(region.fixed, 0, np.minimum(floor, 0)))
    assert min(exponents) < 0
    FoldScales({"c": exponents}).run(one)
    for seed in range(5):
        feed = {"x": 9 * feed_for(proto, seed)["x"]}
        np.testing.assert_array_equal(run(proto, feed)[0], run(oir.to_proto(one.model), feed)[0])


@pytest.mark.parametrize("seed", range(5))
def test_limits_hold_for_the_worst_inputs(seed: int) -> None:
    proto, one = state(CLIPPED)
    node = next(n for n in one.model.graph if n.op_type == "Conv")
    linear = as_linear(node)
    assert not isinstance(linear, str)
    low, high = output_limits(linear)
    assert low is not None
    assert high is not None
    probe = type(proto)()
    probe.CopyFrom(proto)
    probe.graph.output.add().name = "c"
    x = np.where(np.random.default_rng(seed).random((1, 3, 8, 8)) > 0.5, 50, -50)
    seen = run(probe, {"x": x.astype(np.float32)})[1]
    assert (seen.min(axis=(0, 2, 3)) >= low).all()
    assert (seen.max(axis=(0, 2, 3)) <= high).all()
