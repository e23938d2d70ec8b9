"""rewrite-one-hot: the product with a one-hot vector is a look-up, also of ids without a row."""

from __future__ import annotations

import numpy as np
import pytest

from qcompile.passes.rewrite_one_hot import RewriteOneHot
from tests.passes.checks import check_passes, parse

TABLE = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
IDS = np.array([[[-7], [0], [1]], [[4], [5], [2147483647]]])


def model(
    dtype: str = "int32", classes: str = "0, 1, 2, 3, 4", opset: int = 17, ids: str = "N, 3, 1"
) -> str:
    return f"""<ir_version: 8, opset_import: ["" : {opset}]>
        g ({dtype}[{ids}] ids) => (float[A, B, 3] y) <{dtype}[1, 1, 5] classes = {{{classes}}}> {{
            e = Equal(ids, classes)
            c = Cast<to = 1>(e)
            y = MatMul(c, w)
        }}"""


@pytest.mark.parametrize("dtype", ["int32", "int64"])
@pytest.mark.parametrize("classes", ["0, 1, 2, 3, 4", "-2, -1, 0, 1, 2"])
def test_rewritten(dtype: str, classes: str) -> None:
    feed = {"ids": IDS.astype(dtype)}
    after = check_passes(
        parse(model(dtype, classes), w=TABLE),
        RewriteOneHot(),
        ["Squeeze", "Clip", "Sub", "Gather"],
        feed=feed,
    )
    assert list(after.graph)[-1].name == "MatMul_2"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (model(classes="0, 1, 2, 4, 5"), "not consecutive"),
        (model(classes="0, 1, 2, 3, 2147483647"), "not consecutive"),
        (model(ids="N, 3, 5"), "last axis of 1"),
        (model(opset=12), "opset 13"),
    ],
)
def test_kept(text: str, reason: str) -> None:
    shape = (2, 3, 5) if "N, 3, 5" in text else (2, 3, 1)
    feed = {"ids": np.ones(shape, np.int32)}
    check_passes(parse(text, w=TABLE), RewriteOneHot(), feed=feed, notes=[reason], changed=False)
