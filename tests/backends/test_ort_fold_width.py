"""A Conv of one channel read as four: the same integers from a channels-last kernel."""

from __future__ import annotations

import numpy as np
import onnx_ir as oir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.backends.ort_models import lowered, ops, parse

TEXT = """
agraph (float[N,1,9,WIDTH] x) => (float[N,O,H,V] y)
  <float sx = {0.02}, uint8 zx = {90}, float[O] sw = {SCALES}, int8[O] zw = {ZEROS},
   float[O] sb = {BIAS_SCALES}, int32[O] zb = {ZEROS}, int32[O] b = {BIAS},
   float sy = {0.05}, uint8 zy = {ZY}, int8[O,1,KH,KW] w = {WEIGHTS}>
{
  xq = QuantizeLinear(x, sx, zx) xd = DequantizeLinear(xq, sx, zx)
  wd = DequantizeLinear<axis=0>(w, sw, zw)
  bd = DequantizeLinear<axis=0>(b, sb, zb)
  c = Conv<ATTRIBUTES>(xd, wd, bd)
  ACT
  yq = QuantizeLinear(LAST, sy, zy)
  y = DequantizeLinear(yq, sy, zy)
}
"""


def conv(
    width: int = 28,
    outputs: int = 8,
    kernel: tuple[int, int] = (3, 3),
    stride: tuple[int, int] = (2, 2),
    dilation: int = 1,
    pads: tuple[int, int, int, int] = (1, 1, 1, 1),
    relu: bool = False,
    seed: int = 0,
) -> oir.Model:
    rng = np.random.default_rng(seed)
    size = outputs * kernel[0] * kernel[1]

    def numbers(values: np.ndarray) -> str:
        return ", ".join(str(v) for v in values.tolist())

    scales = rng.uniform(0.005, 0.02, outputs).astype(np.float32)
    down = (9 + pads[0] + pads[2] - (kernel[0] - 1) * dilation - 1) // stride[0] + 1
    across = (width + pads[1] + pads[3] - (kernel[1] - 1) * dilation - 1) // stride[1] + 1
    attributes = f"kernel_shape={list(kernel)}, strides={list(stride)}, pads={list(pads)}"
    fill = {
        "ATTRIBUTES": f"{attributes}, dilations=[{dilation}, {dilation}]",
        "BIAS_SCALES": numbers(scales * np.float32(0.02)),
        "SCALES": numbers(scales),
        "BIAS": numbers(rng.integers(-3000, 3000, outputs)),
        "ZEROS": numbers(np.zeros(outputs, int)),
        "WEIGHTS": numbers(rng.integers(-127, 128, size)),
        "WIDTH": str(width),
        "ZY": "20",
        "ACT": "r = Relu(c)" if relu else "",
        "LAST": "r" if relu else "c",
        "KH": str(kernel[0]),
        "KW": str(kernel[1]),
        "O,": f"{outputs},",
        "[O]": f"[{outputs}]",
        "H,V": f"{down},{across}",
    }
    text = TEXT
    for key, value in fill.items():
        text = text.replace(key, value)
    return parse(text)


FOLDED = [
    "QuantizeLinear", "Reshape", "QLinearConv", "Reshape", "Transpose", "DequantizeLinear",
]  # fmt: skip


def test_three_by_three_of_stride_two() -> None:
    result = lowered(conv(), step=0.05)
    assert ops(result.model) == FOLDED
    node = next(n for n in result.model.graph if n.op_type == "QLinearConv")
    assert node.domain == "com.microsoft" and node.name == "n_c"
    weight = node.inputs[3]
    assert weight is not None and weight.shape == (16, 4, 3, 2)


def test_an_activation_becomes_a_clip() -> None:
    assert "Clip" in ops(lowered(conv(relu=True), step=0.05).model)


@settings(max_examples=40, deadline=None)
@given(
    width=st.sampled_from([12, 24]),
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 5)),
    stride=st.tuples(st.integers(1, 2), st.integers(1, 3)),
    dilation=st.integers(1, 2),
    pads=st.tuples(*[st.integers(0, 2)] * 4),
    seed=st.integers(0, 9),
)
def test_same_integers(
    width: int,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    dilation: int,
    pads: tuple[int, int, int, int],
    seed: int,
) -> None:
    lowered(conv(width, 8, kernel, stride, dilation, pads, seed=seed), step=0.05)


@pytest.mark.parametrize(
    "options",
    [
        {"width": 27},
        {"pads": (1, 0, 1, 0)},
        {"outputs": 4},
        {"kernel": (1, 2), "stride": (1, 1), "dilation": 8, "pads": (0, 8, 0, 0)},
    ],
)
def test_what_does_not_fit_or_saves_nothing_stays(options: dict[str, object]) -> None:
    result = lowered(conv(**options), step=0.05)  # type: ignore[arg-type]
    assert "Reshape" not in ops(result.model)
