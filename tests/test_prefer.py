"""--prefer: what stays float because 8 bits would cost an engine a kernel."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import qcompile
from qcompile.artifact import LOCK
from qcompile.backends.tables import get_target
from qcompile.ir.errors import OptionError, TargetError
from qcompile.ir.plan import INT8, PrecisionPlan
from qcompile.lock import Lock
from tests.passes.qdq_models import text_model


def _gated() -> bytes:
    """A Conv, squeeze-and-excitation, and a head of one row."""
    rng = np.random.default_rng(0)

    def weight(*shape: int) -> np.ndarray:
        return (rng.standard_normal(shape) * 0.2).astype(np.float32)

    proto = text_model(
        """g (float[1, 16, 8, 8] x) => (float[1, 32] y) {
            a = Conv <pads = [1, 1, 1, 1]> (x, w1)
            r = Relu (a)
            p = GlobalAveragePool (r)
            d = Conv (p, w2)
            e = Relu (d)
            u = Conv (e, w3)
            h = HardSigmoid (u)
            m = Mul (r, h)
            t = GlobalAveragePool (m)
            f = Flatten (t)
            y = Gemm (f, w4)
        }""",
        w1=weight(16, 16, 3, 3),
        w2=weight(16, 16, 1, 1),
        w3=weight(16, 16, 1, 1),
        w4=weight(16, 32),
    )
    return proto.SerializeToString()


@pytest.mark.parametrize(("prefer", "layers"), [("kernels", 1), (None, 3), ("layers", 4)])
def test_each_preference_has_its_layers(prefer: str | None, layers: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    feeds = [{"x": rng.standard_normal((1, 16, 8, 8)).astype(np.float32)} for _ in range(4)]
    result = qcompile.compile(
        _gated(),
        target="tensorrt-int8",
        calibration=feeds,
        output=tmp_path / "out",
        threads=1,
        effort="fast",
        prefer=prefer,
        min_sqnr=0,
    )
    plan = PrecisionPlan.from_json((tmp_path / "out" / "plan.json").read_text())
    products = [c.precision for c in plan.layers if c.op_type in ("Conv", "Gemm")]
    assert products.count(INT8) == layers
    assert result.report.data["inputs"].get("option.prefer") == prefer
    assert Lock.read(tmp_path / "out" / LOCK).inputs.get("option.prefer") == prefer


def test_other_targets_and_words_are_refused() -> None:
    with pytest.raises(TargetError, match="ort-int8 leaves no layer float to save a kernel"):
        get_target("ort-int8", "native").preferring("layers")
    with pytest.raises(OptionError, match="--prefer 'speed' is unknown; use balance"):
        qcompile.compile(_gated(), prefer="speed")
