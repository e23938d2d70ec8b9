"""Which nodes can be integer, and the reason for each that cannot."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import onnx_ir as oir
import pytest

from qcompile.backends.tables import get_target
from qcompile.passes.insert_qdq import InsertQDQ
from qcompile.passes.integer_region import observed_tensors, pairs
from qcompile.passes.quantizable import Site, classify, quantizable
from qcompile.planner.default import default_plan
from tests.passes.qdq_models import VNNI, state_of, text_model

W = np.ones((4, 3, 3, 3), np.float32)
M = np.ones((8, 8), np.float32)


def sites(graph: str, opset: int = 17, **arrays: npt.NDArray[np.generic]) -> dict[str, Site]:
    """Sites by origin."""
    state = state_of(text_model(graph, opset, **arrays), calibrate=False)
    return {site.origin: site for site in classify(state)}


def reason(graph: str, opset: int = 17, **arrays: npt.NDArray[np.generic]) -> str:
    """Why node n_y stays float."""
    return sites(graph, opset, **arrays)["n_y"].reason


def test_a_conv_has_activation_weight_and_bias() -> None:
    found = sites(
        "g (float[1,3,8,8] x) => (float[1,4,6,6] y) { y = Conv (x, w, b) }",
        w=W,
        b=np.ones(4, np.float32),
    )["n_y"]
    assert found.reason == ""
    assert found.role == "compute"
    assert found.activation_names == ("x",)
    assert found.output_names == ("y",)
    assert found.weight is not None
    assert found.weight.name == "w"
    assert found.weight_spec is not None
    assert found.weight_spec.granularity.axis == 0
    assert found.bias is not None
    assert found.bias.name == "b"


def test_a_matmul_of_two_activations_quantizes_both() -> None:
    found = sites("g (float[2,8] x, float[8,2] z) => (float[2,2] y) { y = MatMul (x, z) }")["n_y"]
    assert found.activation_names == ("x", "z")
    assert found.weight is None
    assert found.reason == ""


@pytest.mark.parametrize(("transposed", "axis"), [(0, 1), (1, 0)])
def test_gemm_takes_the_axis_from_transb(transposed: int, axis: int) -> None:
    text = f"g (float[N,8] x) => (float[N,8] y) {{ y = Gemm <transB = {transposed}> (x, w) }}"
    spec = sites(text, w=M)["n_y"].weight_spec
    assert spec is not None
    assert spec.granularity.axis == axis


CONV = "g (float[1,3,8,8] x) => (float[1,4,6,6] y) { y = Conv (x, w) }"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (
            "g (float[1,3,8,8] x, float[4,3,3,3] w) => (float[1,4,6,6] y) { y = Conv (x, w) }",
            "weight 'w' is computed at run time",
        ),
        (
            "g (float[1,3,8,8] x, float[4] b) => (float[1,4,6,6] y) { y = Conv (x, w, b) }",
            "bias 'b' is computed at run time",
        ),
        (
            "g (float[N,8] x) => (float[N,8] y) { y = Gemm <alpha = 0.5> (x, m) }",
            "alpha is not 1",
        ),
        (
            "g (float[N,8] x) => (float[N,8] y) { y = Gemm <beta = 0.5> (x, m, v) }",
            "beta is not 1",
        ),
        (
            "g (float[8,8] x) => (float[8,8] y) { y = Gemm (x, m, m2) }",
            "bias 'm2' of shape (8, 8) is not one number per column",
        ),
        (
            "g (float[8,8] x, float[8,8] z) => (float[8,8] y) { y = Gemm (x, z, v) }",
            "a bias beside two activations",
        ),
        (
            "g (float[1,2,4,4] x) => (float[1,2,8,8] y) "
            '{ y = Resize <mode = "linear"> (x, , scales) }',
            "mode=linear has no integer kernel",
        ),
        (
            "g (float[1,2,4,4] x) => (float[1,2,8,8] y) "
            '{ y = Resize <coordinate_transformation_mode = "tf_crop_and_resize"> (x, roi, scales) }',
            "coordinate_transformation_mode=tf_crop_and_resize",
        ),
        (
            "g (float[1,2,4,4] x) => (float[1,2,3,3] y, int64[1,2,3,3] i) "
            "{ y, i = MaxPool <kernel_shape = [2, 2]> (x) }",
            "output 1 ('i') is used",
        ),
        (
            "g (float[N,8] x) => (float[N,8] y) { y = Clip (x, one, two) }",
            "zero lies outside the limits",
        ),
        (
            "g (float[N,8] x, float z) => (float[N,8] y) { y = Clip (x, z) }",
            "limit 'z' is computed at run time",
        ),
        (
            "g (float[1,2,4,4] x) => (float[1,2,6,6] y) { y = Pad (x, pads, one) }",
            "padding value 'one' is not zero",
        ),
        (
            "g (float[1,2,4,4] x) => (float[1,1,4,4] y) { y = ReduceMean <axes = [1]> (x) }",
            "the mean runs over axes (1,)",
        ),
        (
            "g (int64[N] i) => (float[N,8] y) { y = Gather (m, i) }",
            "a table of constants",
        ),
        ("g (float[N,8] x) => (float[N,8] y) { y = Softmax (x) }", "7 times slower"),
        (
            "g (float[1,3,8,8] x) => (float[1,3,10,10] y) { y = ConvTranspose (x, wt) }",
            "no integer ConvTranspose",
        ),
        (
            "g (double[8,8] x, double[8,8] z) => (double[8,8] y) { y = MatMul (x, z) }",
            "'x' is double; needed: float32",
        ),
    ],
)
def test_refusals_have_reasons(text: str, why: str) -> None:
    held: dict[str, npt.NDArray[np.generic]] = {
        "w": W,
        "wt": np.ones((3, 3, 3, 3), np.float32),
        "m": M,
        "m2": M,
        "v": np.ones(8, np.float32),
        "scales": np.asarray([1, 1, 2, 2], np.float32),
        "roi": np.zeros(8, np.float32),
        "one": np.asarray(1, np.float32),
        "two": np.asarray(2, np.float32),
        "pads": np.asarray([0, 0, 1, 1, 0, 0, 1, 1], np.int64),
    }
    operands = text[text.rindex("{") :]
    used = {
        k: a
        for k, a in held.items()
        if f" {k})" in operands or f"({k}," in operands or f" {k}," in operands
    }
    declared = text[: text.index("=>")]
    assert why in reason(text, **{k: a for k, a in used.items() if f" {k}" not in declared})


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_weight_that_is_not_finite_is_refused(bad: float) -> None:
    weight = W.copy()
    weight[1, 1, 1, 1] = bad
    assert "holds NaN or infinity" in reason(CONV, w=weight)


def test_float16_is_refused_with_what_is_needed() -> None:
    text = "g (float16[1,3,8,8] x) => (float16[1,4,6,6] y) { y = Conv (x, w) }"
    assert reason(text, w=W.astype(np.float16)) == "weight 'w' is float16; needed: float32"


def test_an_overridable_weight_is_not_constant() -> None:
    """An initializer that is a graph input too may be replaced by the caller."""
    text = "g (float[N,8] x, float[8,8] w) => (float[N,8] y) { y = Gemm (x, w, b) }"
    proto = text_model(text, w=M, b=np.ones(8, np.float32))
    state = state_of(proto, calibrate=False)
    assert classify(state)[0].reason.startswith("weight 'w' is a default that callers may override")


def test_a_default_that_callers_may_override_has_no_range() -> None:
    model = text_model(
        "g (float[2,8] x, float[8,8] w) => (float[2,8] y) { y = MatMul (x, w) }", w=M
    )
    (found,) = classify(state_of(model, calibrate=False))
    assert "callers may override" in found.reason
    assert "--fix-weights" in found.reason


def test_an_unknown_type_is_refused_unless_a_weight_tells_it() -> None:
    proto = text_model(
        "g (float[N,8] x) => (float[N,8] y) { a = Tanh (x)  m = MatMul (a, w)  y = Add (m, a) }",
        w=M,
    )
    model = oir.from_proto(proto)
    for node in model.graph:
        node.outputs[0].type = None
    found = {site.op_type: site.reason for site in quantizable(model, VNNI)}
    assert found["MatMul"] == ""
    assert "type of 'm' is unknown" in found["Add"]


def test_nodes_on_shapes_and_indices_are_no_sites() -> None:
    found = sites(
        """g (float[N,8] x) => (float[N,8] y) {
          s = Shape (x)  u = Unsqueeze (s, zero)  q = Squeeze (u, zero)  y = Reshape (x, q) }""",
        zero=np.asarray([0], np.int64),
    )
    assert set(found) == {"n_y"}


def test_opset_9_has_no_quantizelinear() -> None:
    assert reason(CONV, 9, w=W) == "opset 9 has no integer form; it needs opset 10"


def test_maxpool_on_integers_needs_opset_12() -> None:
    text = "g (float[1,2,4,4] x) => (float[1,2,3,3] y) { y = MaxPool <kernel_shape = [2, 2]> (x) }"
    assert "needs opset 12" in reason(text, 11)
    assert reason(text, 12) == ""


def test_lstm_is_only_dynamic() -> None:
    found = sites(
        """g (float[S,1,3] x) => (float[S,1,1,2] y) { y = LSTM <hidden_size = 2> (x, w, r) }""",
        w=np.ones((1, 8, 3), np.float32),
        r=np.ones((1, 8, 2), np.float32),
    )["n_y"]
    assert found.dynamic
    assert "no form with fixed activation scales" in found.reason


def test_what_is_quantized_already_is_kept() -> None:
    proto = text_model(CONV, w=W)
    state = state_of(proto)
    state.plan = default_plan(state)
    InsertQDQ().run(state)
    assert [site.reason for site in classify(state)] == ["already quantized in this model"]


def test_repeated_origins_stay_apart() -> None:
    proto = text_model(
        "g (float[N,8] x) => (float[N,8] y) { a = MatMul (x, w)  y = MatMul (a, w) }", w=M
    )
    proto.graph.node[0].name = proto.graph.node[1].name = "same"
    state = state_of(proto, calibrate=False)
    assert [site.origin for site in classify(state)] == ["same", "same#2"]


PAIR = """g (float[1,3,8,8] x) => (float[1,4,6,6] y) {
  a = Conv (x, w)  r = Relu (a)  y = Clip (r, zero) }"""


def test_a_relu_behind_a_kernel_belongs_to_it() -> None:
    """Only one is taken in, and what lies between needs no range."""
    found = sites(PAIR, w=W, zero=np.asarray(0, np.float32))
    assert {node.name: owner.origin for node, owner in pairs(found.values()).items()} == {
        "n_r": "n_a"
    }
    assert observed_tensors(found.values()) == ("x", "r", "y")


def test_a_relu_with_company_stands_alone() -> None:
    """Another reader of the Conv's result needs it before the Relu."""
    found = sites(
        "g (float[1,3,8,8] x) => (float[1,4,6,6] y) { a = Conv (x, w)  r = Relu (a)  y = Add (a, r) }",
        w=W,
    )
    assert pairs(found.values()) == {}
    assert observed_tensors(found.values()) == ("x", "a", "r", "y")


def test_without_vnni_weights_have_7_bits() -> None:
    """255 * 63 * 2 fits 16 bits, where vpmaddubsw adds pairs."""
    target = get_target("ort-int8", "x86-avx2")
    model = oir.from_proto(text_model(CONV, w=W))
    spec = quantizable(model, target)[0].weight_spec
    assert spec is not None
    assert (spec.qmin, spec.qmax) == (-63, 63)
    assert 255 * spec.qmax * 2 < 2**15
    assert replace(spec, bits=None).qmax == 127
