"""fold-affine: chains vanish into the layers around them, exactly, or say why not."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from qcompile.passes.fold_affine import FoldAffine
from tests.passes.checks import check_passes, parse

HEADER = '<ir_version: 8, opset_import: ["" : 17]>\n'
NUMBERS = """<float k = {2.5}, float m = {-0.5}, float s = {1.5}, float[1, 1, 1, 1] f = {0.5},
    float[4, 1, 1] v = {1.0, 2.0, 3.0, 4.0}, float[1, 4, 1, 1] u = {-1.0, 2.0, -3.0, 4.0},
    float[5] wide = {1.0, 2.0, 3.0, 4.0, 5.0}, float zero = {0.0}>"""


def model(body: str, signature: str = "", **shapes: tuple[int, ...]) -> onnx.ModelProto:
    rng = np.random.default_rng(0)
    weights = {n: rng.normal(size=s).astype(np.float32) for n, s in shapes.items()}
    signature = signature or "(float[N, 4, 5, 5] x) => (float[N, C, H, W] y)"
    return parse(f"{HEADER}g {signature} {NUMBERS} {{ {body} }}", **weights)


CONV = {"w": (4, 4, 1, 1), "b": (4,)}


@pytest.mark.parametrize(
    "chain",
    [
        "y = Mul(c, k)",
        "y = Add(m, c)",
        "y = Sub(c, v)",
        "y = Sub(k, c)",
        "y = Div(c, u)",
        "d = Mul(c, v)\n e = Add(d, u)\n f1 = Sub(e, k)\n y = Div(f1, s)",
    ],
)
@pytest.mark.parametrize("conv", ["Conv(x, w)", "Conv(x, w, b)", "Conv<pads = [0,0,0,0]>(x, w, b)"])
def test_behind_a_conv(conv: str, chain: str) -> None:
    check_passes(model(f"c = {conv}\n {chain}", **CONV), FoldAffine(), ["Conv"])


def test_behind_depthwise_and_transposed_convs() -> None:
    body = "c = %s\n d = Mul(c, v)\n y = Add(d, u)"
    check_passes(model(body % "Conv<group = 4>(x, w)", w=(4, 1, 3, 3)), FoldAffine(), ["Conv"])
    check_passes(
        model(body % "ConvTranspose(x, w)", w=(4, 4, 2, 2)), FoldAffine(), ["ConvTranspose"]
    )


def test_behind_a_matmul_the_constant_is_its_bias() -> None:
    signature = "(float[N, 3, 5] x) => (float[N, 3, 5] y)"
    body = "c = MatMul(x, w)\n d = Add(wide, c)\n e = Mul(d, k)\n y = Add(e, m)"
    check_passes(model(body, signature, w=(5, 5)), FoldAffine(), ["MatMul", "Add"])
    body = "c = MatMul(x, w)\n y = Mul(c, wide)"
    check_passes(model(body, signature, w=(5, 5)), FoldAffine(), ["MatMul"])
    body = "c = MatMul(x, w)\n y = Add(wide, c)"
    check_passes(model(body, signature, w=(5, 5)), FoldAffine(), ["MatMul", "Add"], changed=False)


@pytest.mark.parametrize(
    "chain", ["a = Mul(r, k)", "a = Mul(r, u)\n", "d = Add(r, v)\n a = Mul(d, u)"]
)
def test_before_a_conv_without_padding(chain: str) -> None:
    body = f"r = Abs(x)\n {chain}\n y = Conv(a, w)"
    check_passes(model(body, w=(6, 4, 3, 3)), FoldAffine(), ["Abs", "Conv"])
    body = f"r = Abs(x)\n {chain}\n y = Conv<group = 2>(a, w)"
    check_passes(model(body, w=(6, 2, 3, 3)), FoldAffine(), ["Abs", "Conv"])


def test_before_a_conv_with_padding_only_the_factor_goes() -> None:
    body = "r = Abs(x)\n d = Mul(r, k)\n a = Add(d, m)\n y = Conv<pads = [1, 1, 1, 1]>(a, w)"
    after = check_passes(
        model(body, w=(6, 4, 3, 3)), FoldAffine(), ["Abs", "Add", "Conv"], notes=["pads with zeros"]
    )
    add = list(after.graph)[1]
    assert add.inputs[1] is not None and add.inputs[1].const_value is not None
    assert add.inputs[1].const_value.numpy() == pytest.approx(-0.5 / 2.5)
    body = 'r = Abs(x)\n a = Mul(r, k)\n y = Conv<auto_pad = "SAME_UPPER">(a, w)'
    check_passes(model(body, w=(6, 4, 3, 3)), FoldAffine(), ["Abs", "Conv"])


def test_before_a_matmul_the_constant_goes_into_the_bias_behind_it() -> None:
    signature = "(float[N, 3, 5] x) => (float[N, 3, 4] y)"
    body = "r = Abs(x)\n d = Mul(r, wide)\n a = Sub(d, k)\n c = MatMul(a, w)\n y = Add(c, b)"
    check_passes(model(body, signature, w=(5, 4), b=(4,)), FoldAffine(), ["Abs", "MatMul", "Add"])
    body = "r = Abs(x)\n d = Mul(r, wide)\n a = Sub(d, k)\n y = MatMul(a, w)"
    check_passes(model(body, signature, w=(5, 4)), FoldAffine(), ["Abs", "Add", "MatMul"])


def test_every_reader_takes_its_share() -> None:
    body = """r = Abs(x)
        d = Mul(r, k)
        a = Add(d, m)
        p = GlobalAveragePool(a)
        q = Conv(p, w, b)
        h = Sigmoid(q)
        g = Mul(a, h)
        y = Conv(g, w2)"""
    after = ["Abs", "Add", "GlobalAveragePool", "Conv", "Sigmoid", "Mul", "Conv"]
    made = model(body, w=(4, 4, 1, 1), b=(4,), w2=(6, 4, 1, 1))
    check_passes(made, FoldAffine(), after, notes=["multiplies it with another"])
    # Without the constant nothing is left of the chain.
    made = model(
        body.replace("a = Add(d, m)", "a = Mul(d, s)"), w=(4, 4, 1, 1), b=(4,), w2=(6, 4, 1, 1)
    )
    check_passes(made, FoldAffine(), [o for o in after if o != "Add"])


@pytest.mark.parametrize(
    "way",
    [
        "p = Relu(a)",
        "p = MaxPool<kernel_shape = [2, 2], pads = [1, 1, 1, 1]>(a)",
        "p = AveragePool<kernel_shape = [2, 2], pads = [1, 1, 1, 1], count_include_pad = 1>(a)",
        "q = Transpose<perm = [0, 1, 3, 2]>(a)\n p = LeakyRelu<alpha = 0.1>(q)",
        "p = Mul(a, x)",
    ],
)
def test_a_positive_factor_passes(way: str) -> None:
    made = model(f"r = Abs(x)\n a = Mul(r, k)\n {way}\n y = Conv(p, w)", w=(6, 4, 1, 1))
    after = check_passes(made, FoldAffine(), changed=True)
    assert [n.op_type for n in after.graph].count("Mul") == way.count("Mul(")


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("r = Abs(x)\n a = Mul(r, m)\n p = Relu(a)\n y = Conv(p, w)", "needs a positive factor"),
        ("r = Abs(x)\n a = Add(r, m)\n p = Relu(a)\n y = Conv(p, w)", "not linear in a constant"),
        ("r = Abs(x)\n a = Mul(r, k)\n p = Exp(a)\n y = Conv(p, w)", "Exp 'Exp_2' reads it"),
        (
            "r = Abs(x)\n a = Mul(r, v)\n p = Transpose<perm = [0, 1, 3, 2]>(a)\n y = Conv(p, w)",
            "may move",
        ),
        (
            "r = Abs(x)\n a = Add(r, m)\n"
            "p = AveragePool<kernel_shape = [2, 2], pads = [1, 1, 1, 1], count_include_pad = 1>(a)\n"
            "y = Conv(p, w)",
            "averages padding",
        ),
        ("r = Abs(x)\n a = Mul(r, wide)\n y = Conv(a, w)", "not the input channels"),
    ],
)
def test_what_stops_it(body: str, reason: str) -> None:
    check_passes(model(body, w=(6, 4, 1, 1)), FoldAffine(), notes=[reason], changed=False)


def test_a_chain_that_is_an_output_stays() -> None:
    signature = "(float[N, 4, 5, 5] x) => (float[N, C, H, W] y, float[N, 4, 5, 5] a)"
    made = model("r = Abs(x)\n a = Mul(r, k)\n y = Conv(a, w)", signature, w=(6, 4, 1, 1))
    check_passes(made, FoldAffine(), notes=["is an output"], changed=False)
    signature = "(float[N, 4, 5, 5] x) => (float[N, C, H, W] y, float[N, 4, 5, 5] c)"
    made = model("c = Conv(x, w)\n y = Mul(c, k)", signature, w=(4, 4, 1, 1))
    check_passes(made, FoldAffine(), ["Conv", "Mul"], notes=["also read elsewhere"], changed=False)


def test_an_overridable_constant_or_weight_stays() -> None:
    signature = "(float[N, 4, 5, 5] x, float k) => (float[N, C, H, W] y)"
    made = model("c = Conv(x, w)\n y = Mul(c, k)", signature, w=(4, 4, 1, 1))
    feed = {"x": np.ones((1, 4, 5, 5), np.float32)}
    check_passes(made, FoldAffine(), ["Conv", "Mul"], feed=feed, changed=False)
    signature = "(float[N, 4, 5, 5] x, float[4, 4, 1, 1] w) => (float[N, C, H, W] y)"
    made = model("c = Conv(x, w)\n y = Mul(c, k)", signature, w=(4, 4, 1, 1))
    check_passes(made, FoldAffine(), ["Conv", "Mul"], feed=feed, changed=False)


def test_a_shared_weight_is_copied_if_small() -> None:
    body = "c = Conv(x, w)\n d = Mul(c, k)\n e = Conv(x, w)\n y = Add(d, e)"
    check_passes(model(body, w=(4, 4, 1, 1)), FoldAffine(), ["Conv", "Conv", "Add"])
    signature = "(float[N, 600] x) => (float[N, 600] y)"
    body = "c = Gemm(x, w)\n d = Mul(c, k)\n e = Gemm(x, w)\n y = Add(d, e)"
    made = model(body, signature, w=(600, 600))
    check_passes(made, FoldAffine(), notes=["shared and too big"], changed=False)


def test_a_factor_that_broadcasts_stays() -> None:
    signature = "(float[N, 1, 5, 5] x) => (float[N, C, H, W] y)"
    made = model("r = Abs(x)\n a = Mul(r, v)\n y = Conv(a, w)", signature, w=(6, 4, 1, 1))
    check_passes(
        made, FoldAffine(), ["Abs", "Mul", "Conv"], notes=["may be broadcast"], changed=False
    )


def test_what_reaches_no_layer_is_merged() -> None:
    made = model(
        "r = Abs(x)\n a = Mul(r, k)\n b1 = Add(a, m)\n c = Mul(b1, u)\n d = Sub(c, s)\n y = Exp(d)"
    )
    check_passes(made, FoldAffine(), ["Abs", "Mul", "Add", "Exp"])
    made = model("r = Abs(x)\n a = Add(r, k)\n b1 = Sub(a, s)\n y = Exp(b1)")
    check_passes(made, FoldAffine(), ["Abs", "Add", "Exp"])


def test_a_chain_read_in_a_branch_stays() -> None:
    signature = "(float[N, 4, 5, 5] x, bool t) => (float[N, C, H, W] y, float[N, C, H, W] z)"
    body = """r = Abs(x)
        a = Mul(r, k)
        z = If(t) <then_branch = p () => (float[N, C, H, W] o) { o = Neg(a) },
                   else_branch = q () => (float[N, C, H, W] i) { i = Abs(x) }>
        y = Conv(a, w)"""
    feed = {"x": np.ones((1, 4, 5, 5), np.float32), "t": np.array(True)}
    made = model(body, signature, w=(6, 4, 1, 1))
    check_passes(made, FoldAffine(), feed=feed, notes=["inside a branch"], changed=False)


@pytest.mark.parametrize(
    "moves",
    [
        "d = Squeeze(c, last)\n y = Mul(d, column)",
        "d = Squeeze(c, last)\n e = Add(d, column)\n y = Mul(e, k)",
        "d = Unsqueeze(c, last)\n y = Add(d, stack)",
        "d = Transpose<perm = [0, 2, 3, 1]>(c)\n e = Reshape(d, flat)\n y = Div(e, k)",
    ],
)
def test_behind_moves_of_data(moves: str) -> None:
    signature = "(float[N, 4, 5, 1] x) => (float[...] y)"
    text = f"c = Conv(x, w)\n {moves}"
    numbers = NUMBERS.replace(
        ">",
        """, int64[1] last = {3}, int64[2] flat = {-1, 4},
        float[4, 1] column = {1.0, 2.0, 3.0, 4.0}, float[4, 1, 1, 1] stack = {1.0, 2.0, 3.0, 4.0}>""",
    )
    weights = {"w": np.random.default_rng(0).normal(size=(4, 4, 1, 1)).astype(np.float32)}
    made = parse(f"{HEADER}g {signature.replace('[...]', '[A]')} {numbers} {{ {text} }}", **weights)
    made.graph.output[0].type.tensor_type.ClearField("shape")
    after = check_passes(onnx.shape_inference.infer_shapes(made), FoldAffine(), changed=True)
    assert not {"Mul", "Add", "Div"} & {n.op_type for n in after.graph}


def test_the_scale_of_an_attention_goes_into_a_projection() -> None:
    signature = "(float[N, 6, 4] x) => (float[N, 2, 6, 6] y)"
    body = """q0 = MatMul(x, w)
        q1 = Add(q0, b)
        q2 = Reshape(q1, heads)
        q3 = Transpose<perm = [0, 2, 1, 3]>(q2)
        k0 = MatMul(x, w2)
        k2 = Reshape(k0, heads)
        k3 = Transpose<perm = [0, 2, 3, 1]>(k2)
        p = MatMul(q3, k3)
        d = Div(p, k)
        y = Softmax(d)"""
    rng = np.random.default_rng(0)
    shapes = {"w": (4, 4), "w2": (4, 4), "b": (4,)}
    weights = {n: rng.normal(size=s).astype(np.float32) for n, s in shapes.items()}
    numbers = NUMBERS.replace(">", ", int64[4] heads = {0, 0, 2, 2}>")
    made = parse(f"{HEADER}g {signature} {numbers} {{ {body} }}", **weights)
    after = check_passes(made, FoldAffine(), changed=True)
    assert [n.op_type for n in after.graph][-2:] == ["MatMul", "Softmax"]
    (add,) = [n for n in after.graph if n.op_type == "Add"]
    assert add.inputs[1] is not None and add.inputs[1].const_value is not None
    np.testing.assert_allclose(add.inputs[1].const_value.numpy(), weights["b"] / 2.5, rtol=1e-6)


def test_columns_on_a_checkpoint_s_grid_take_no_factors() -> None:
    signature = "(float[N, 3, 5] x) => (float[N, 3, 5] y)"
    kept = FoldAffine(columns=False)
    body = "c = Mul(x, wide)\n y = MatMul(c, w)"
    check_passes(model(body, signature, w=(5, 5)), kept, ["Mul", "MatMul"], changed=False)
    body = (
        "c = Mul(x, k)\n y = MatMul(c, w)"  # one factor for all: the grid is another, and still one
    )
    check_passes(model(body, signature, w=(5, 5)), kept, ["MatMul"])
    body = "c = MatMul(x, w)\n y = Mul(c, wide)"  # one for each row
    check_passes(model(body, signature, w=(5, 5)), kept, ["MatMul"])
