"""spell-fused: what ONNX Runtime's optimizer writes, taken apart again, equal in numbers."""

from __future__ import annotations

import numpy as np
import pytest

from qcompile.backends.ort import max_opset
from qcompile.passes.spell_fused import SpellFused
from tests.passes.checks import check_passes, ops, parse, state_of

HEAD = '<ir_version: 9, opset_import: ["" : 17, "com.microsoft" : 1]>\n'
RNG = np.random.default_rng(0)


def floats(*shape: int) -> str:
    values = RNG.standard_normal(shape).ravel()
    dims = ", ".join(map(str, shape))
    return f"float[{dims}] {{name}} = {{{{{', '.join(f'{v:.4f}' for v in values)}}}}}"


def constants(**shapes: tuple[int, ...]) -> str:
    return ", ".join(floats(*s).format(name=name) for name, s in shapes.items())


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ('activation = "Relu"', ["Conv", "Relu"]),
        ('activation = "Clip", activation_params = [0.0, 1.5]', ["Conv", "Clip"]),
        ('activation = "LeakyRelu", activation_params = [0.2]', ["Conv", "LeakyRelu"]),
        ('activation = "HardSigmoid", activation_params = [0.2, 0.4]', ["Conv", "HardSigmoid"]),
        ("group = 1", ["Conv"]),
    ],
)
def test_a_conv_with_its_activation(given: str, expected: list[str]) -> None:
    text = f"""{HEAD} g (float[N, 3, 5, 5] x) => (float[N, 2, 5, 5] y)
        <{constants(w=(2, 3, 3, 3), b=(2,))}>
        {{ [conv] y = com.microsoft.FusedConv<pads = [1, 1, 1, 1], {given}>(x, w, b) }}"""
    after = check_passes(parse(text), SpellFused(), expected)
    conv = next(iter(after.graph))
    assert conv.name == "conv" and conv.attributes.get_ints("pads") == (1, 1, 1, 1)


def test_the_sum_that_joined_a_conv() -> None:
    text = f"""{HEAD} g (float[N, 3, 5, 5] x, float[N, 2, 5, 5] z) => (float[N, 2, 5, 5] y)
        <{constants(w=(2, 3, 1, 1), b=(2,))}>
        {{ y = com.microsoft.FusedConv<activation = "Relu">(x, w, b, z) }}"""
    check_passes(parse(text), SpellFused(), ["Conv", "Add", "Relu"])


def test_an_activation_that_is_not_known_stays() -> None:
    text = f"""{HEAD} g (float[N, 3, 5, 5] x) => (float[N, 2, 5, 5] y)
        <{constants(w=(2, 3, 1, 1), b=(2,))}>
        {{ y = com.microsoft.FusedConv<activation = "Clip">(x, w, b) }}"""
    state = state_of(parse(text))
    result = SpellFused().run(state)
    assert ops(state.model) == ["FusedConv"] and result.changed == 0
    assert "FusedConv stays: its activation is Clip" in result.notes[0].text
    assert len(list(state.model.graph.inputs[0].uses())) == 1, "no part was left hanging"


def test_a_gemm_with_its_activation() -> None:
    text = f"""{HEAD} g (float[N, 4] x) => (float[N, 3] y) <{constants(w=(3, 4), b=(3,))}>
        {{ y = com.microsoft.FusedGemm<activation = "LeakyRelu", activation_alpha = 0.3,
                                       transB = 1>(x, w, b) }}"""
    check_passes(parse(text), SpellFused(), ["Gemm", "LeakyRelu"])


def test_a_product_of_turned_matrices() -> None:
    text = f"""{HEAD} g (float[N, 4, 3] x) => (float[N, 3, 5] y) <{constants(w=(5, 4))}>
        {{ y = com.microsoft.FusedMatMul<transA = 1, transB = 1, alpha = 0.5>(x, w) }}"""
    check_passes(parse(text), SpellFused(), ["Transpose", "Transpose", "MatMul", "Mul"])


@pytest.mark.parametrize(
    ("operator", "first"),
    [
        ("BiasGelu(x, b)", "Add"),
        ("Gelu(x)", "Mul"),
        ("FastGelu(x, b)", "Add"),
        ("FastGelu(x)", "Mul"),
        ("QuickGelu(x)", "Mul"),
        ("QuickGelu<alpha = 1.0>(x)", "Sigmoid"),
    ],
)
def test_gelu(operator: str, first: str) -> None:
    text = f"""{HEAD} g (float[N, 4] x) => (float[N, 4] y) <{constants(b=(4,))}>
        {{ y = com.microsoft.{operator} }}"""
    after = check_passes(parse(text), SpellFused(), atol=1e-5)
    assert next(iter(after.graph)).op_type == first
    assert all(not node.domain for node in after.graph)


@pytest.mark.parametrize("tail", ["(x, z, g)", "(x, z, g, s)", "(x, z, g, s, b)"])
def test_a_sum_in_front_of_a_layer_norm(tail: str) -> None:
    text = f"""{HEAD} g (float[N, 3, 4] x, float[N, 3, 4] z) => (float[N, 3, 4] y)
        <{constants(g=(4,), s=(4,), b=(4,))}>
        {{ y = com.microsoft.SkipLayerNormalization<epsilon = 0.001>{tail} }}"""
    adds = ["Add", "Add"] if "b)" in tail else ["Add"]
    check_passes(parse(text), SpellFused(), [*adds, "LayerNormalization"])


def test_the_sum_is_handed_on() -> None:
    text = f"""{HEAD} g (float[N, 3, 4] x, float[N, 3, 4] z) => (float[N, 3, 4] y, float[N, 3, 4] o)
        <{constants(g=(4,), s=(4,))}>
        {{ y, m, d, t = com.microsoft.SkipLayerNormalization(x, z, g, s)
           o = Relu(t) }}"""
    check_passes(parse(text), SpellFused(), ["Add", "LayerNormalization", "Relu"])


RMS = ["Pow", "ReduceMean", "Add", "Sqrt", "Div", "Mul"]


@pytest.mark.parametrize(("opset", "norm"), [(17, RMS), (18, RMS), (23, ["RMSNormalization"])])
@pytest.mark.parametrize("tail", ["(x, z, g)", "(x, z, g, b)"])
def test_a_sum_in_front_of_a_root_mean_square(opset: int, norm: list[str], tail: str) -> None:
    if opset > max_opset():
        pytest.skip("this ONNX Runtime has no opset 23")
    text = f"""{HEAD} g (float[N, 3, 4] x, float[N, 3, 4] z) => (float[N, 3, 4] y, float[N, 3, 4] o)
        <{constants(g=(4,), b=(4,))}>
        {{ y, m, d, t = com.microsoft.SkipSimplifiedLayerNormalization<epsilon = 0.001>{tail}
           o = Relu(t) }}"""
    adds = ["Add", "Add"] if "b)" in tail else ["Add"]
    text = text.replace('"" : 17', f'"" : {opset}').replace("version: 9", "version: 10")
    check_passes(parse(text), SpellFused(), [*adds, *norm, "Relu"])


def attention(mask: str, given: str) -> str:
    inputs = f"float[N, 3, 8] x{', ' + mask if mask else ''}"
    read = "x, w, b, mask" if mask else "x, w, b"
    return f"""{HEAD} g ({inputs}) => (float[N, 3, 8] y) <{constants(w=(8, 24), b=(24,))}>
        {{ y = com.microsoft.Attention<num_heads = 2{given}>({read}) }}"""


PARTS = ["MatMul", "Add", "Split", "MultiHeadAttention"]


@pytest.mark.parametrize("given", ["", ", scale = 0.2", ", unidirectional = 1"])
def test_the_products_in_front_of_attention(given: str) -> None:
    check_passes(parse(attention("", given)), SpellFused(), PARTS)


def test_attention_that_hides_positions() -> None:
    feed = {
        "x": RNG.standard_normal((2, 3, 8)).astype(np.float32),
        "mask": np.array([[1, 1, 0], [1, 1, 1]], np.int32),
    }
    check_passes(parse(attention("int32[N, 3] mask", "")), SpellFused(), PARTS, feed=feed)


def test_attention_by_lengths_stays() -> None:
    feed = {
        "x": RNG.standard_normal((2, 3, 8)).astype(np.float32),
        "mask": np.array([2, 3], np.int32),
    }
    check_passes(
        parse(attention("int32[N] mask", "")),
        SpellFused(),
        ["Attention"],
        feed=feed,
        notes=["Attention stays: its mask 'mask' is not one number per position"],
    )
