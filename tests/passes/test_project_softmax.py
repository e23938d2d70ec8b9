"""project-softmax: a weighted mean over channels without dividing every channel."""

from __future__ import annotations

import numpy as np
import pytest

from qcompile.passes.project_softmax import ProjectSoftmax
from tests.passes.checks import check_passes, parse

TEXT = """<ir_version: 8, opset_import: ["" : OPSET]>
g (float[N, 4, 16, 6] x) => (float[N, OUT, 4, 6] y) <float[OUT, 16, 1, 1] w = {0}> {
    t = Transpose<perm = [0, 2, 1, 3]>(x)
    s = Softmax<axis = AXIS>(t)
    y = Conv<ATTRIBUTES>(s, w)
}"""
AFTER = ["ReduceMax", "Sub", "Exp", "MatMul", "Split", "Div", "Transpose"]


def model(
    opset: int = 17, out: int = 1, axis: int = 1, attributes: str = "kernel_shape = [1, 1]"
) -> str:
    text = TEXT.replace("OPSET", str(opset)).replace("OUT", str(out)).replace("AXIS", str(axis))
    return text.replace("ATTRIBUTES", attributes)


def weight(out: int = 1, channels: int = 16) -> np.ndarray:
    return np.arange(out * channels, dtype=np.float32).reshape(out, channels, 1, 1)


@pytest.mark.parametrize("opset", [13, 17, 18])
@pytest.mark.parametrize(("out", "axis"), [(1, 1), (4, -3)])
def test_projected(opset: int, out: int, axis: int) -> None:
    before = parse(model(opset, out, axis), w=weight(out))
    after = check_passes(before, ProjectSoftmax(), AFTER)
    product = next(n for n in after.graph if n.op_type == "MatMul")
    assert product.metadata_props["qcompile.origin"].split("\n")[0] == "Conv_2"


def test_large_inputs_do_not_overflow() -> None:
    feed = {"x": np.full((1, 4, 16, 6), 300.0, np.float32)}
    check_passes(parse(model(), w=weight()), ProjectSoftmax(), AFTER, feed=feed)


@pytest.mark.parametrize(
    ("text", "held", "reason"),
    [
        (model(axis=-1), weight(), "does not run over the channels"),
        (model(out=5), weight(5), "5 outputs of 16 channels are too many"),
        (
            model(attributes="kernel_shape = [1, 1], strides = [1, 2]").replace(
                "4, 6] y", "4, 3] y"
            ),
            weight(),
            "strides",
        ),
    ],
)
def test_kept(text: str, held: np.ndarray, reason: str) -> None:
    check_passes(parse(text, w=held), ProjectSoftmax(), notes=[reason], changed=False)


def test_a_softmax_that_is_read_elsewhere_stays() -> None:
    text = model().replace("6] y)", "6] y, float[N, 16, 4, 6] s)")
    check_passes(parse(text, w=weight()), ProjectSoftmax(), notes=["output"], changed=False)
