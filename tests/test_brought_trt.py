"""Models that come with Q/DQ of another runtime's form, compiled for TensorRT: legal afterwards."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as oir
import pytest

import qcompile
from qcompile.backends.legality import check_legality
from qcompile.backends.tables import get_target

RNG = np.random.default_rng(3)

# uint8 with a zero point, per-channel weights, an int32 bias: ONNX Runtime's default form
ASYMMETRIC = """<ir_version: 8, opset_import: ["" : 13]>
g (float[1, 16, 12, 12] x) => (float[1, 16, 12, 12] y)
<float sx = {0.0234375}, uint8 zx = {120}, float sa = {0.03}, int8 za = {0}> {
    xq = QuantizeLinear(x, sx, zx)
    xd = DequantizeLinear(xq, sx, zx)
    wd = DequantizeLinear<axis = 0>(w, sw)
    bd = DequantizeLinear<axis = 0>(b, sb)
    c = Conv<pads = [1, 1, 1, 1]>(xd, wd, bd)
    cq = QuantizeLinear(c, sa, za)
    cd = DequantizeLinear(cq, sa, za)
    vd = DequantizeLinear<axis = 0>(v, sv)
    y = Conv<pads = [1, 1, 1, 1]>(cd, vd)
}"""


@pytest.mark.parametrize("target", ["tensorrt-int8", "tensorrt-fp8"])
def test_the_form_of_another_runtime_becomes_a_legal_one(tmp_path: Path, target: str) -> None:
    proto = onnx.parser.parse_model(ASYMMETRIC)
    sw = RNG.uniform(0.001, 0.003, 16).astype(np.float32)
    constants = {
        "w": RNG.integers(-127, 128, (16, 16, 3, 3)).astype(np.int8),
        "sw": sw,
        "b": RNG.integers(-3000, 3000, 16).astype(np.int32),
        "sb": (np.float32(0.0234375) * sw).astype(np.float32),
        "v": RNG.integers(-127, 128, (16, 16, 3, 3)).astype(np.int8),
        "sv": sw,
    }
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(a, n) for n, a in constants.items())
    for node in proto.graph.node:
        node.name = f"n_{node.output[0]}"
    path = tmp_path / "m.onnx"
    onnx.save(proto, path)
    table = get_target(target, "sm89")
    before = [i.text for i in check_legality(oir.load(path), table)]
    assert any("activations of uint8" in text for text in before)
    assert any("int32 bias" in text for text in before)
    feeds = [{"x": RNG.normal(0, 1, (1, 16, 12, 12)).astype(np.float32)} for _ in range(12)]
    result = qcompile.compile(
        path, target=target, device="sm89", calibration=feeds, output=tmp_path / "a",
        effort="fast", threads=1,
    )  # fmt: skip
    assert result.exit_code == 0, result.headlines()
    written = oir.load(result.path / "model.qdq.onnx")
    assert check_legality(written, table) == ()
    held = [v.const_value for v in written.graph.initializers.values()]
    scales = [t.numpy() for t in held if t is not None and t.dtype.is_floating_point()]
    brought = any(s.size == 1 and abs(float(s) - 0.03) < 2e-5 for s in scales)
    assert brought == (target == "tensorrt-int8"), "a symmetric scale is kept, in integers"
