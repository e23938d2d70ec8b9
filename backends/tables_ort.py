"""ONNX Runtime's CPU provider: what runs in integers, found by running tiny models with 1.31."""

from __future__ import annotations

from qcompile.backends.devices import Device
from qcompile.ir.spec import QuantSpec
from qcompile.ir.target import OpSupport, Target

__all__ = ["ort_int8"]

_TRIED = "tried with ONNX Runtime 1.31"

_ROWS = (
    OpSupport(
        "Conv", "compute", (0,), weight=1, weight_axis=0, bias=2, absorbs=("Relu", "Clip"),
        source=f"QLinearConv, {_TRIED}",
    ),
    OpSupport(
        "MatMul", "compute", (0, 1), weight=1, weight_constant=False, weight_axis=-1,
        per_channel_ranks=(2,), quantized_output=False, dynamic=True,
        source=f"QLinearMatMul or MatMulIntegerToFloat, {_TRIED}",
    ),
    OpSupport(
        "Gemm", "compute", (0,), weight=1, weight_axis="auto", weight_ranks=(2,), bias=2,
        quantized_output=False, absorbs=("Relu", "Clip"), source=f"QGemm, {_TRIED}",
    ),
)  # fmt: skip


def ort_int8(device: Device) -> Target:
    """Static INT8 on ONNX Runtime's CPU provider."""
    bits = None if device.exact_dot else 7
    return Target(
        name="ort-int8",
        backend="ort",
        device=device.name,
        activation=QuantSpec("uint8", symmetric=False),
        weight=QuantSpec("int8", symmetric=True, narrow=True, bits=bits),
        ops={row.op_type: row for row in _ROWS},
        features=device.features,
    )
