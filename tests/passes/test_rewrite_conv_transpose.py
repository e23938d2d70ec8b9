"""rewrite-conv-transpose: exact where windows do not overlap, and only where it pays."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from qcompile.passes.rewrite_conv_transpose import RewriteConvTranspose
from tests.passes.checks import check_passes, parse

ALWAYS = RewriteConvTranspose(min_inputs=1)


def model(body: str, opset: int = 17, **shapes: tuple[int, ...]) -> onnx.ModelProto:
    rng = np.random.default_rng(0)
    weights = {n: rng.normal(size=s).astype(np.float32) for n, s in shapes.items()}
    text = f"""<ir_version: 8, opset_import: ["" : {opset}]>
        g (float[N, 4, 3, 5] x) => (float[N, C, H, W] y) {{ {body} }}"""
    return parse(text, **weights)


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("opset", [9, 11, 17])
@pytest.mark.parametrize("inputs", ["x, w", "x, w, b"])
def test_a_single_layer(size: int, opset: int, inputs: str) -> None:
    made = model(
        f"y = ConvTranspose<strides = [{size}, {size}]>({inputs})",
        opset,
        w=(4, 6, size, size),
        b=(6,),
    )
    after = check_passes(made, ALWAYS, ["Conv", "DepthToSpace"])
    conv, spread = after.graph
    assert conv.name == "ConvTranspose_0"
    assert spread.outputs[0].name == "y"


def test_activations_move_next_to_the_conv() -> None:
    body = "c = ConvTranspose<strides = [2, 2]>(x, w)\n d = Relu(c)\n y = Sigmoid(d)"
    check_passes(model(body, w=(4, 6, 2, 2)), ALWAYS, ["Conv", "Relu", "Sigmoid", "DepthToSpace"])


@pytest.mark.parametrize("sizes", [(2, 2), (2, 3), (3, 2)])
def test_a_pair_needs_one_depth_to_space(sizes: tuple[int, int]) -> None:
    k, m = sizes
    body = f"""c = ConvTranspose<strides = [{k}, {k}]>(x, w, b)
        d = Relu(c)
        e = ConvTranspose<strides = [{m}, {m}]>(d, v, a)
        y = Sigmoid(e)"""
    made = model(body, w=(4, 2, k, k), b=(2,), v=(2, 1, m, m), a=(1,))
    if k * m == 4:
        made = model(
            body.replace("(x, w, b)", "(x, w, b)"), w=(4, 2, k, k), b=(2,), v=(2, 1, m, m), a=(1,)
        )
        check_passes(made, RewriteConvTranspose(), notes=["costs more"], changed=False)
    wide = f"z = Conv(x, p)\n {body}".replace("(x, w, b)", "(z, w, b)")
    made = model(wide, p=(32, 4, 1, 1), w=(32, 2, k, k), b=(2,), v=(2, 1, m, m), a=(1,))
    check_passes(
        made, RewriteConvTranspose(), ["Conv", "Conv", "Relu", "Conv", "Sigmoid", "DepthToSpace"]
    )


@pytest.mark.parametrize(
    ("line", "weight", "reason"),
    [
        ("ConvTranspose<strides = [2, 2]>(x, w)", (4, 6, 3, 3), "is not its stride"),
        ("ConvTranspose<strides = [2, 3]>(x, w)", (4, 6, 2, 3), "not square"),
        ("ConvTranspose(x, w)", (4, 6, 1, 1), "1x1"),
        ("ConvTranspose<strides = [2, 2], group = 2>(x, w)", (4, 3, 2, 2), "2 groups"),
        ("ConvTranspose<strides = [2, 2], pads = [1, 1, 1, 1]>(x, w)", (4, 6, 2, 2), "has pads"),
        (
            "ConvTranspose<strides = [2, 2], output_padding = [1, 1]>(x, w)",
            (4, 6, 2, 2),
            "has output_padding",
        ),
        (
            "ConvTranspose<strides = [2, 2], output_shape = [6, 10]>(x, w)",
            (4, 6, 2, 2),
            "output shape",
        ),
    ],
)
def test_kept(line: str, weight: tuple[int, ...], reason: str) -> None:
    check_passes(
        model(f"y = {line}", w=weight), ALWAYS, ["ConvTranspose"], notes=[reason], changed=False
    )


def test_few_channels_do_not_pay() -> None:
    made = model("y = ConvTranspose<strides = [2, 2]>(x, w)", w=(4, 6, 2, 2))
    check_passes(made, RewriteConvTranspose(), notes=["costs more"], changed=False)
