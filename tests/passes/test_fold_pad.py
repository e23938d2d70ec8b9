"""fold-pad: zero padding moves into Conv and AveragePool."""

from __future__ import annotations

import numpy as np
import pytest

from qcompile.passes.fold_pad import FoldPad
from tests.passes.checks import check_passes, parse

W = np.random.default_rng(0).normal(size=(3, 4, 3, 3)).astype(np.float32)


def model(pads: str, pad: str = "Pad(x, pads)", layer: str = "Conv(p, w)", extra: str = "") -> str:
    return f"""<ir_version: 8, opset_import: ["" : 17]>
        g (float[N, 4, 6, 6] x) => (float[N, C, H, W] y)
        <int64[8] pads = {{{pads}}}, float one = {{1.0}}, float zero = {{0.0}}> {{
            p = {pad}
            {extra}
            y = {layer}
        }}"""


@pytest.mark.parametrize(
    ("pads", "layer"),
    [
        ("0, 0, 1, 1, 0, 0, 1, 1", "Conv(p, w)"),
        ("0, 0, 0, 1, 0, 0, 2, 3", "Conv<pads = [1, 0, 0, 1], strides = [2, 2]>(p, w)"),
        ("0, 0, 1, 1, 0, 0, 1, 1", 'Conv<auto_pad = "VALID">(p, w)'),
        ("0, 0, 1, 1, 0, 0, 1, 1", "AveragePool<kernel_shape = [3, 3]>(p)"),
        (
            "0, 0, 1, 1, 0, 0, 0, 1",
            "AveragePool<kernel_shape = [3, 3], pads = [1, 1, 1, 1], count_include_pad = 1>(p)",
        ),
    ],
)
def test_folded(pads: str, layer: str) -> None:
    check_passes(
        parse(model(pads, layer=layer), w=W),
        FoldPad(),
        [layer.split("(", maxsplit=1)[0].split("<", maxsplit=1)[0]],
    )
    explicit = model(pads, "Pad(x, pads, zero)", layer)
    check_passes(
        parse(explicit, w=W), FoldPad(), [layer.split("(", maxsplit=1)[0].split("<", maxsplit=1)[0]]
    )


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (model("0, 1, 0, 0, 0, 1, 0, 0", layer="Conv<group = 2>(p, w2)"), "batch or channels"),
        (model("0, 0, -1, 0, 0, 0, 0, 0"), "crops"),
        (model("0, 0, 1, 1, 0, 0, 1, 1", "Pad(x, pads, one)"), "another value"),
        (model("0, 0, 1, 1, 0, 0, 1, 1", 'Pad<mode = "reflect">(x, pads)'), "mode is reflect"),
        (model("0, 0, 1, 1, 0, 0, 1, 1", layer='Conv<auto_pad = "SAME_UPPER">(p, w)'), "auto_pad"),
        (
            model(
                "0, 0, 1, 1, 0, 0, 1, 1",
                layer="AveragePool<kernel_shape = [3, 3], pads = [1, 1, 1, 1]>(p)",
            ),
            "does not count",
        ),
    ],
)
def test_kept(text: str, reason: str) -> None:
    w2 = np.ones((2, 3, 3, 3), np.float32)
    check_passes(parse(text, w=W, w2=w2), FoldPad(), notes=[reason], changed=False)


def test_a_pad_that_others_read_stays_for_them() -> None:
    text = model(
        "0, 0, 1, 1, 0, 0, 1, 1",
        layer="Add(c, m)",
        extra="c = Conv(p, w)\n m = ReduceMax<axes = [1]>(p)",
    )
    text = text.replace(
        "m = ReduceMax", "q = MaxPool<kernel_shape = [3, 3]>(p)\n m = ReduceMax"
    ).replace("[1]>(p)", "[1]>(q)")
    after = check_passes(parse(text, w=W), FoldPad(), changed=True)
    assert [n.op_type for n in after.graph] == ["Pad", "Conv", "MaxPool", "ReduceMax", "Add"]
