"""ONNX Runtime's CPU provider: what runs in integers, found by running tiny models with 1.31.

Each row's source says what the operator becomes and, where it was timed, how fast: float time over
integer time of the bare kernel on (1, 64, 56, 56), one thread, AVX512-VNNI. Below 1 the integer
kernel is slower, and still pays where it spares a Quantize and a Dequantize.
"""

from __future__ import annotations

from qcompile.backends.devices import Device
from qcompile.ir.spec import QuantSpec
from qcompile.ir.target import OpSupport, Target

__all__ = ["ort_int8"]

_TRIED = "tried with ONNX Runtime 1.31"
_CLAMPS = ("Relu", "Clip")


def _moves(
    op_type: str,
    speed: str = "not timed",
    *,
    activations: tuple[int, ...] | None = (0,),
    outputs: tuple[int, ...] | None = (0,),
    min_opset: int = 10,
    allowed: dict[str, tuple[str | int | None, ...]] | None = None,
) -> OpSupport:
    return OpSupport(
        op_type,
        "passthrough",
        activations,
        outputs,
        min_opset=min_opset,
        allowed=dict(allowed or {}),
        source=f"{op_type} on uint8, {_TRIED}: {speed}",
    )


def _pointwise(
    op_type: str,
    kernel: str,
    speed: str,
    *,
    activations: tuple[int, ...] | None = (0,),
    min_opset: int = 10,
    absorbs: tuple[str, ...] = _CLAMPS,
) -> OpSupport:
    return OpSupport(
        op_type,
        "elementwise",
        activations,
        min_opset=min_opset,
        absorbs=absorbs,
        source=f"{kernel}, {_TRIED}: {speed}",
    )


_ROWS = (
    # A Conv of which nothing behind it is quantized runs in float with its weight dequantized, so
    # its output is always integer. auto_pad with dilations fails in float too.
    OpSupport(
        "Conv", "compute", (0,), weight=1, weight_axis=0, weight_ranks=(3, 4, 5), bias=2,
        absorbs=_CLAMPS,
        source=f"QLinearConv, {_TRIED}: 3.5 to 4.2 x for 3x3, 2.7 to 3.3 x for 1x1, "
        "0.75 to 1.0 x for depthwise and 3-channel first layers",
    ),
    # A weight of three dimensions with a scale per column passes every check and fails at run time.
    OpSupport(
        "MatMul", "compute", (0, 1), weight=1, weight_constant=False, weight_axis=-1,
        per_channel_ranks=(2,), quantized_output=False, absorbs=_CLAMPS, dynamic=True,
        source=f"QLinearMatMul or MatMulIntegerToFloat, {_TRIED}: 3.5 to 4.2 x; "
        "DynamicQuantizeMatMul: 2.9 to 3.2 x",
    ),
    OpSupport(
        "Gemm", "compute", (0, 1), weight=1, weight_constant=False, weight_axis="auto",
        weight_ranks=(2,), bias=2, quantized_output=False, absorbs=_CLAMPS,
        source=f"QGemm with or without integer output, {_TRIED}",
    ),
    OpSupport(
        "LSTM", "compute", (0,), weight=1, static=False, dynamic=True,
        source=f"DynamicQuantizeLSTM, {_TRIED}: 1.5 to 3.1 x, 33 to 39 dB on random data; "
        "no form with fixed scales",
    ),
    _pointwise("Add", "QLinearAdd", "1.2 x", activations=(0, 1)),
    _pointwise("Mul", "QLinearMul", "0.7 x", activations=(0, 1)),
    _pointwise("Sigmoid", "QLinearSigmoid", "0.95 x"),
    _pointwise("LeakyRelu", "QLinearLeakyRelu", "0.8 x"),
    _pointwise("HardSwish", "Clip and QLinearMul on uint8", "1.8 x", absorbs=()),
    _pointwise("HardSigmoid", "Clip on uint8", "4 x", absorbs=()),
    _pointwise("AveragePool", "depthwise QLinearConv of ones", "2.8 to 7 x"),
    _pointwise("GlobalAveragePool", "QLinearGlobalAveragePool", "3 x"),
    _pointwise("ReduceMean", "QLinearGlobalAveragePool over the spatial axes", "3 x"),
    _pointwise("Concat", "QLinearConcat, a scale per input", "3.6 x", activations=None),
    _pointwise("Where", "QLinearWhere", "not timed", activations=(1, 2)),
    # Behind an integer kernel they vanish; alone they are a Clip on uint8.
    _pointwise("Relu", "Clip on uint8", "vanishes behind a kernel", min_opset=12, absorbs=()),
    _pointwise("Clip", "Clip on uint8", "vanishes behind a kernel", min_opset=12, absorbs=()),
    _moves("MaxPool", "2.2 x as NhwcMaxPool with two Transposes, 0.05 x in NCHW", min_opset=12,
           allowed={"storage_order": (None, 0)}),
    _moves("Resize", "0.6 x, 2.1 x for asymmetric floor", min_opset=11,
           allowed={
               "mode": (None, "nearest"),
               "coordinate_transformation_mode": (
                   None, "half_pixel", "half_pixel_symmetric", "pytorch_half_pixel",
                   "asymmetric", "align_corners",
               ),
           }),
    _moves("Reshape"),
    _moves("Flatten"),
    _moves("Squeeze"),
    _moves("Unsqueeze"),
    _moves("Identity"),
    _moves("Transpose", "2.6 x"),
    _moves("Slice", "3.3 x"),
    _moves("Gather", "3.3 x"),
    _moves("GatherElements", min_opset=11),
    _moves("GatherND", "1.9 x", min_opset=11),
    _moves("Split", outputs=None),
    _moves("Expand", "1.8 x"),
    _moves("Tile", "2 x"),
    _moves("DepthToSpace", "1.45 x", min_opset=11),
    _moves("SpaceToDepth", "0.9 x", min_opset=13),
    _moves("Pad", "1.1 x", min_opset=13),
    _moves("ReduceMax", "1.8 x", min_opset=12),
    _moves("ReduceMin", "1.8 x", min_opset=12),
)  # fmt: skip

_LEFT_FLOAT = {
    "ConvTranspose": "the CPU provider has no integer ConvTranspose",
    "Div": "no integer kernel (a division by a constant can be folded into a Mul)",
    "Einsum": "no integer kernel (write it as a MatMul)",
    "Elu": "no integer kernel",
    "Erf": "no integer kernel",
    "GRU": "no integer GRU, static or dynamic",
    "Gelu": "no integer kernel",
    "InstanceNormalization": "no integer kernel",
    "LayerNormalization": "no integer kernel",
    "PRelu": "no integer kernel",
    "RNN": "no integer RNN, static or dynamic",
    "Softmax": "QLinearSoftmax is 7 times slower than the float kernel (12 against 1.7 ms in a ViT-S)",
    "Sub": "no integer kernel",
    "Tanh": "no integer kernel",
}
"""Operators that one might expect in integers."""


def ort_fp16(device: Device) -> Target:
    """Everything in float16 whose values fit, for ONNX Runtime's GPU providers.

    The CPU provider computes such a model by casting back and forth: right, but slower than float32.
    """
    left = dict.fromkeys(("Conv", "MatMul", "Gemm"), "the target is float16")
    return Target(
        name="ort-fp16",
        backend="ort",
        device=device.name,
        activation=QuantSpec("uint8", symmetric=False),
        weight=QuantSpec("int8", symmetric=True),
        ops={},
        left_float=left,
        rests=("fp16",),
        portable=True,
        notes=("fast with a GPU provider only; on the CPU the accuracy alone is checked",),
        features=device.features,
    )


def ort_int8(device: Device) -> Target:
    """Static INT8 on ONNX Runtime's CPU provider.

    uint8 activations and int8 weights are the fast form wherever products are summed in 32 bits. On
    x86 without VNNI, u8 x s8 goes through vpmaddubsw, which adds two products in 16 bits and
    saturates: 255 * 127 * 2 > 32767. With 7-bit weights 255 * 63 * 2 = 32130 fits.
    """
    if device.exact_dot:
        bits, note = None, f"{device.name}: uint8 activations, int8 weights ({device.source})"
    else:
        bits = 7
        note = (
            f"{device.name}: uint8 activations, 7-bit weights (-63..63), because without VNNI pairs "
            f"of full 8-bit products saturate in 16 bits ({device.source})"
        )
    return Target(
        name="ort-int8",
        backend="ort",
        device=device.name,
        activation=QuantSpec("uint8", symmetric=False),
        weight=QuantSpec("int8", symmetric=True, narrow=True, bits=bits),
        ops={row.op_type: row for row in _ROWS},
        left_float=_LEFT_FLOAT,
        notes=(note,),
        features=device.features,
    )
