"""Small models for the gate, and the gate as its tests call it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx

from qcompile import verdict
from qcompile.backends.ort import open_session
from qcompile.gate import judge
from qcompile.ir.errors import ModelError
from qcompile.limits import Limits
from qcompile.measure import LoadResult

RNG = np.random.default_rng(0)
FEEDS = [{"x": RNG.normal(size=(1, 4)).astype(np.float32)} for _ in range(6)]


def save(path: Path, text: str) -> Path:
    onnx.save(onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> {text}'), path)
    return path


def small(
    path: Path,
    body: str = "y = Relu(x)",
    ins: str = "float[n, 4] x",
    out: str = "float[n, 4] y",
) -> Path:
    return save(path, f"m ({ins}) => ({out}) {{ {body} }}")


NOISY = "one = Constant<value = float {1.2}>() r = Relu(x) y = Mul(r, one)"
"""20 % too large: 10 log10(1 / 0.04) = 14.0 dB."""


def load_here(
    path: Path, feeds: Any, *, threads: int | None, custom_ops: Any, config: Any = None
) -> LoadResult:
    """Opens a model in this process, half a second quicker than in a child."""
    session, errors = open_session(path, threads=threads), []
    for feed in feeds:
        try:
            session.run(feed)
            errors.append(None)
        except ModelError as e:
            errors.append(str(e))
    return LoadResult(1.0, 1.0, 1, tuple(errors))


def gate(
    ref: Path, other: Path, feeds: Any = FEEDS, limits: Limits | None = None, **more: Any
) -> Any:
    return judge(ref, other, feeds, limits, threads=1, **{"speed": False, **more})


def failed(result: verdict.GateResult, name: str) -> str:
    assert result.verdict == verdict.NOT_DELIVERED and result.exit_code == 3
    texts = [c.text for c in result.failed if c.name == name]
    assert texts, result.checks
    assert texts[0] in result.headline or len(result.failed) > 3
    return texts[0]
