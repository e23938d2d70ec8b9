"""TensorRT with explicit quantization: which layers read 8-bit tensors, by GPU generation.

A kernel reads integers and writes what its consumers ask for, so outputs need no Q of their own.
Everything else runs in float and fuses with what stands around it. "RTX" in a source means an
ahead-of-time build with TensorRT for RTX 1.7: built, not run.
"""

from __future__ import annotations

from dataclasses import replace

from qcompile.backends.devices_gpu import Gpu, get_gpu
from qcompile.ir.errors import TargetError
from qcompile.ir.spec import QuantSpec
from qcompile.ir.target import OpSupport, Target

__all__ = ["tensorrt_fp16", "tensorrt_int8"]

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


def tensorrt_int8(device: str | None) -> Target:
    """Symmetric INT8: activations per tensor, weights per output channel, zero points 0, float biases.

    Raises:
        TargetError: unknown device, or one without INT8 kernels.
    """
    gpu = get_gpu(device)
    if not gpu.int8_products:
        raise TargetError(
            f"TensorRT has no INT8 kernels for {gpu.name} (Conv falls back to float without a word, "
            "MatMul fails); use --target tensorrt-fp16, or name another --device"
        )
    return Target(
        name="tensorrt-int8",
        backend="trt",
        device=gpu.name,
        activation=QuantSpec("int8", symmetric=True),
        weight=QuantSpec("int8", symmetric=True, narrow=True),
        ops={row.op_type: row for row in _PRODUCTS},
        left_float=_LEFT_FLOAT,
        qdq_opset=13,
        notes=(_note(gpu),),
        features=(f"sm{gpu.capability}",),
        # As integers with a DQ, a MatMul whose result is split (q, k, v of attention) runs in float:
        # RTX folds the DQ into the slices of the weight.
        float_constants=True,
        half_rest=True,
        opset=19,  # the first whose Q and DQ take float16 scales
        portable=True,
    )


def tensorrt_fp16(device: str | None) -> Target:
    """Everything in float16 whose values fit; no integers."""
    gpu = get_gpu(device)
    table = tensorrt_int8("sm80")
    left = dict.fromkeys(("Conv", "MatMul", "Gemm", *table.left_float), "the target is float16")
    return replace(
        table,
        name="tensorrt-fp16",
        device=gpu.name,
        ops={},
        left_float=left,
        notes=(_note(gpu),),
        features=(f"sm{gpu.capability}",),
    )


def _note(gpu: Gpu) -> str:
    if gpu.assumed:
        return "no NVIDIA GPU here: the rules of SM80 and later; name yours with --device"
    return f"{gpu.name}: compute capability {gpu.capability / 10:.1f} ({gpu.source})"
