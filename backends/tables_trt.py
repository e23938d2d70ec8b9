"""TensorRT with explicit quantization: which layers read 8-bit tensors, by GPU generation.

A kernel reads integers and writes what its consumers ask for, so outputs need no Q of their own.
Everything else runs in float and fuses with what stands around it. "RTX" in a source means an
ahead-of-time build with TensorRT for RTX 1.7: built, not run.
"""

from __future__ import annotations

from qcompile.backends.devices_gpu import Gpu, get_gpu
from qcompile.ir.spec import QuantSpec
from qcompile.ir.target import OpSupport, Target

__all__ = ["tensorrt_int8"]

_MODEL_OPTIMIZER = "channel limits as NVIDIA's Model-Optimizer 0.40 has them"

_PRODUCTS = (
    OpSupport(
        "Conv", "compute", (0,), weight=1, weight_axis=0, weight_ranks=(3, 4, 5),
        quantized_output=False, few_channels=16,
        source=f"RTX: INT8 on SM80 and later, weight axis 0 only; {_MODEL_OPTIMIZER}",
    ),
    OpSupport(
        "MatMul", "compute", (0, 1), weight=1, weight_constant=False, weight_axis=-1,
        per_channel_ranks=(2,), quantized_output=False, few_channels=16,
        source=f"RTX: INT8 on SM80 and later, weight axis last; {_MODEL_OPTIMIZER}",
    ),
    OpSupport(
        "Gemm", "compute", (0, 1), weight=1, weight_constant=False, weight_axis="auto",
        weight_ranks=(2,), quantized_output=False, few_channels=16,
        source=f"RTX: INT8 on SM80 and later, weight axis by transB; {_MODEL_OPTIMIZER}",
    ),
    OpSupport(
        "Add", "elementwise", (0, 1), quantized_output=False, beside=("Conv",),
        source="vendor documentation: a residual read as INT8 joins the kernel of the Conv before "
        "the Add; RTX",
    ),
)  # fmt: skip

_LEFT_FLOAT = {
    "ConvTranspose": "TensorRT runs it in float in every quantized form tried",
    "LSTM": "TensorRT runs it in float",
    "GRU": "TensorRT runs it in float",
    "RNN": "TensorRT runs it in float",
    "Einsum": "no INT8 kernel (write it as a MatMul)",
}
_TOO_OLD = "no INT8 kernel of TensorRT for this GPU (SM75: Conv falls back to float, MatMul fails)"


def tensorrt_int8(device: str | None) -> Target:
    """Symmetric INT8: activations per tensor, weights per output channel, zero points 0, float biases."""
    gpu = get_gpu(device)
    ops = {row.op_type: row for row in _PRODUCTS} if gpu.int8_products else {}
    left = dict(_LEFT_FLOAT)
    if not gpu.int8_products:
        left |= dict.fromkeys(("Conv", "MatMul", "Gemm"), _TOO_OLD)
    return Target(
        name="tensorrt-int8",
        backend="trt",
        device=gpu.name,
        activation=QuantSpec("int8", symmetric=True),
        weight=QuantSpec("int8", symmetric=True, narrow=True),
        ops=ops,
        left_float=left,
        qdq_opset=13,
        notes=(_note(gpu),),
        features=(f"sm{gpu.capability}",),
        # As integers with a DQ, a MatMul whose result is split (q, k, v of attention) runs in float:
        # RTX folds the DQ into the slices of the weight.
        float_constants=True,
        portable=True,
    )


def _note(gpu: Gpu) -> str:
    if gpu.assumed:
        return "no NVIDIA GPU here: the rules of SM80 and later; name yours with --device"
    return f"{gpu.name}: compute capability {gpu.capability / 10:.1f} ({gpu.source})"
