"""fold-batchnorm: into the layer in front, or written as Mul and Add."""

from __future__ import annotations

import numpy as np
import pytest

from qcompile.passes.fold_batchnorm import FoldBatchNorm
from tests.passes.checks import check_passes, parse

HEADER = '<ir_version: 8, opset_import: ["" : 17]>\n'


def arrays(channels: int, **weights: tuple[int, ...]) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    made = {n: rng.normal(size=s).astype(np.float32) for n, s in weights.items()}
    for name in ("gamma", "beta", "mean"):
        made[name] = rng.normal(size=channels).astype(np.float32)
    made["var"] = rng.uniform(0.5, 2, channels).astype(np.float32)
    return made


NORM = "y = BatchNormalization(c, gamma, beta, mean, var)"


@pytest.mark.parametrize(
    ("layer", "weight", "out"),
    [
        ("Conv(x, w)", (6, 4, 3, 3), 6),
        ("Conv(x, w, b)", (6, 4, 3, 3), 6),
        ("Conv<group = 2>(x, w, b)", (6, 2, 3, 3), 6),
        ("Conv<group = 4>(x, w)", (4, 1, 3, 3), 4),
        ("ConvTranspose(x, w, b)", (4, 6, 3, 3), 6),
        ("ConvTranspose<group = 2>(x, w)", (4, 3, 2, 2), 6),
    ],
)
def test_into_convolutions(layer: str, weight: tuple[int, ...], out: int) -> None:
    text = (
        f"{HEADER}g (float[N, 4, 5, 5] x) => (float[N, {out}, H, W] y) {{ c = {layer}\n {NORM} }}"
    )
    model = parse(text, **arrays(out, w=weight, b=(out,)))
    after = check_passes(
        model, FoldBatchNorm(), [layer.split("<", maxsplit=1)[0].split("(", maxsplit=1)[0]]
    )
    (node,) = after.graph
    assert node.metadata_props["qcompile.origin"].split("\n")[0] == node.name
    assert node.metadata_props["qcompile.origin"].endswith("BatchNormalization_1")


@pytest.mark.parametrize(("layer", "shape"), [("Gemm", (4, 6)), ("Gemm<transB = 1>", (6, 4))])
@pytest.mark.parametrize("factors", ["", "alpha = 0.5, beta = 2.0"])
def test_into_gemm(layer: str, shape: tuple[int, int], factors: str) -> None:
    if factors:
        layer = layer[:-1] + f", {factors}>" if "<" in layer else f"{layer}<{factors}>"
    text = f"{HEADER}g (float[N, 4] x) => (float[N, 6] y) {{ c = {layer}(x, w, b)\n {NORM} }}"
    check_passes(parse(text, **arrays(6, w=shape, b=(6,))), FoldBatchNorm(), ["Gemm"])


def test_behind_an_activation_it_is_written_out() -> None:
    text = f"{HEADER}g (float[N, 4, 5, 5] x) => (float[N, 4, 5, 5] y) {{ c = Relu(x)\n {NORM} }}"
    check_passes(
        parse(text, **arrays(4)), FoldBatchNorm(), ["Relu", "Mul", "Add"], notes=["written as"]
    )


def test_a_matmul_has_no_bias() -> None:
    text = f"{HEADER}g (float[N, 4] x) => (float[N, 6] y) {{ c = MatMul(x, w)\n {NORM} }}"
    check_passes(parse(text, **arrays(6, w=(4, 6))), FoldBatchNorm(), ["MatMul", "Mul", "Add"])


def test_a_shared_weight_is_copied() -> None:
    text = f"""{HEADER}g (float[N, 4, 5, 5] x) => (float[N, 4, 5, 5] y, float[N, 4, 5, 5] z) {{
        c = Conv(x, w)
        z = Conv(x, w)
        {NORM}
    }}"""
    after = check_passes(
        parse(text, **arrays(4, w=(4, 4, 1, 1))), FoldBatchNorm(), ["Conv", "Conv"]
    )
    assert len([n for n in after.graph.initializers if n.startswith("w")]) == 2


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("g (float[N, 4, 5, 5] x, float[4, 4, 1, 1] w) => (float[N, 4, 5, 5] y)", "not constant"),
        ("g (float[N, 4, 5, 5] x) => (float[N, 4, 5, 5] y, float[N, 4, 5, 5] c)", "read elsewhere"),
    ],
)
def test_layers_that_cannot_take_it(text: str, reason: str) -> None:
    model = parse(f"{HEADER}{text} {{ c = Conv(x, w)\n {NORM} }}", **arrays(4, w=(4, 4, 1, 1)))
    feed = {"x": np.ones((2, 4, 5, 5), np.float32)}
    check_passes(model, FoldBatchNorm(), ["Conv", "Mul", "Add"], feed=feed, notes=[reason])


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"var": np.array([1.0, 1, 1, -1], np.float32)}, "variance is not positive"),
        ({}, "parameters are not constant"),
    ],
)
def test_kept(change: dict[str, np.ndarray], reason: str) -> None:
    inputs = "float[N, 4, 5, 5] x" if change else "float[N, 4, 5, 5] x, float[4] var"
    text = f"{HEADER}g ({inputs}) => (float[N, 4, 5, 5] y) {{ c = Relu(x)\n {NORM} }}"
    model = parse(text, **{**arrays(4), **change})
    feed = {"x": np.ones((2, 4, 5, 5), np.float32)}
    check_passes(model, FoldBatchNorm(), feed=feed, notes=[reason], changed=False)
