"""TensorRT with explicit quantization: which layers read 8-bit tensors, by GPU generation.

A kernel reads 8 bits and writes what its consumers ask for, so outputs need no Q of their own.
Everything else runs in float and fuses with what stands around it. "RTX" in a source means an
ahead-of-time build with TensorRT for RTX 1.7: built, not run.
"""

from __future__ import annotations

from dataclasses import replace

from qcompile.backends.devices_gpu import Gpu, get_gpu
from qcompile.ir.errors import TargetError
from qcompile.ir.plan import FP8, NVFP4
from qcompile.ir.spec import FLOAT8, QuantSpec
from qcompile.ir.target import OpSupport, Target, WeightForm

__all__ = [
    "tensorrt_bf16",
    "tensorrt_fp8",
    "tensorrt_fp16",
    "tensorrt_int4",
    "tensorrt_int8",
    "tensorrt_nvfp4",
]

_MODEL_OPTIMIZER = "channel limits as NVIDIA's Model-Optimizer 0.40 has them"


def _products(kernels: str) -> tuple[OpSupport, ...]:
    """Layers that multiply; ``kernels`` says where 8-bit kernels of them were seen."""
    return (
        OpSupport(
            "Conv", "compute", (0,), weight=1, weight_axis=0, weight_ranks=(3, 4, 5),
            quantized_output=False, few_channels=16,
            source=f"{kernels}, weight axis 0 only; {_MODEL_OPTIMIZER}",
        ),
        OpSupport(
            "MatMul", "compute", (0, 1), weight=1, weight_constant=False, weight_axis=-1,
            per_channel_ranks=(2,), quantized_output=False, few_channels=16,
            source=f"{kernels}, weight axis last; {_MODEL_OPTIMIZER}",
        ),
        OpSupport(
            "Gemm", "compute", (0, 1), weight=1, weight_constant=False, weight_axis="auto",
            weight_ranks=(2,), quantized_output=False, few_channels=16,
            source=f"{kernels}, weight axis by transB; {_MODEL_OPTIMIZER}",
        ),
    )  # fmt: skip


_RESIDUAL = OpSupport(
    "Add", "elementwise", (0, 1), quantized_output=False, beside=("Conv",),
    source="vendor documentation: a residual read as INT8 joins the kernel of the Conv before "
    "the Add; RTX",
)  # fmt: skip

_BETWEEN = (
    OpSupport(
        "Concat", "passthrough", None,
        source="vendor documentation: inputs of one scale are written where they end up; with several "
        "scales RTX quantizes a tensor once for each",
    ),
    OpSupport(
        "MaxPool", "passthrough", source="vendor documentation: commutes with Q and DQ; RTX",
        min_opset=12,
    ),
    OpSupport(
        "Resize", "passthrough", allowed={"mode": (None, "nearest")},
        source="vendor documentation: commutes with Q and DQ; RTX", min_opset=11,
    ),
    OpSupport(
        "AveragePool", "elementwise",
        source="vendor documentation: 8 bits with Q and DQ on both sides; RTX",
    ),
    OpSupport(
        "GlobalAveragePool", "elementwise",
        source="vendor documentation: 8 bits with Q and DQ on both sides; RTX",
    ),
)  # fmt: skip
"""What hands 8 bits on between layers. Whatever kernel stands before it writes them."""

_LEFT_FLOAT = {
    "ConvTranspose": "TensorRT runs it in float in every quantized form tried",
    "LSTM": "TensorRT runs it in float",
    "GRU": "TensorRT runs it in float",
    "RNN": "TensorRT runs it in float",
    "Einsum": "no 8-bit kernel (write it as a MatMul)",
}

_LONGEST_ATTENTION = 512
"""RTX fuses attention of INT8 up to here, of FP8 and 16 bits at any length (tried up to 1,500)."""

_ATTENTION_CHANNELS = (16, 32, 64)
"""RTX: attention of INT8 is one kernel with these channels a head, and with no other (tried 4 to 256)."""

_VECTOR_WEIGHTS = 1 << 20
"""RTX: a product of one row is one kernel more in 8 bits, or two (tried up to 25088 x 4096). That takes
a GPU some microseconds, in which it reads about so many bytes."""

_VECTOR_OPS = ("MatMul", "Gemm")
"""Convs over one position, as in squeeze-and-excitation, are 8 bits all the same, as other tools have
them. Each block is two kernels more; ``--prefer kernels`` saves those."""

_WIDE = {
    "HardSigmoid": "RTX ends a kernel before one of 16 bits, and fuses one of 32 with what it gates",
}

_SCALES_OPSET = 19
"""The first opset whose Q and DQ take float16 scales, and 8-bit floats."""

_BLOCKS_OPSET = 21
"""The first opset whose DQ takes INT4 and blocks."""

_FP4_OPSET = 23
"""The first opset whose DQ takes 4-bit floats."""

_FP4_BLOCK = 16
"""Numbers along K that share a scale; the hardware has no other."""

_BF16_OPSET = 22
"""The first opset in which Conv and pooling have bfloat16 forms."""


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
        ops={
            r.op_type: r for r in (*_products("RTX: INT8 on SM80 and later"), _RESIDUAL, *_BETWEEN)
        },
        left_float=_LEFT_FLOAT,
        qdq_opset=13,
        notes=(_note(gpu),),
        features=(f"sm{gpu.capability}",),
        # As integers with a DQ, a MatMul whose result is split (q, k, v of attention) runs in float:
        # RTX folds the DQ into the slices of the weight.
        float_constants=True,
        quantizes_anywhere=True,
        rests=("fp16", "bf16", "fp32"),
        wide=_WIDE,
        longest_attention=_LONGEST_ATTENTION,
        attention_channels=_ATTENTION_CHANNELS,
        vector_weights=_VECTOR_WEIGHTS,
        vector_ops=_VECTOR_OPS,
        opset=_SCALES_OPSET,
        rest_opsets={"bf16": _BF16_OPSET},
        portable=True,
    )


def tensorrt_fp8(device: str | None) -> Target:
    """E4M3: activations per tensor, weights per output channel, float biases.

    Raises:
        TargetError: unknown device, or one without FP8 kernels.
    """
    gpu = get_gpu(device, assumed="sm89")
    if not gpu.fp8:
        raise TargetError(
            f"TensorRT has no FP8 kernels for {gpu.name}: they need SM89 (Ada), SM90 (Hopper) or "
            "later; use --target tensorrt-int8, or name another --device"
        )
    return replace(
        tensorrt_int8("sm89"),
        name="tensorrt-fp8",
        device=gpu.name,
        activation=QuantSpec(FLOAT8, symmetric=True),
        weight=QuantSpec(FLOAT8, symmetric=True),
        ops={r.op_type: r for r in _products("RTX: FP8 on SM89 and SM120")},
        qdq_opset=_SCALES_OPSET,
        precision=FP8,
        longest_attention=0,
        attention_channels=(),
        vector_ops=Target.vector_ops,
        notes=(_note(gpu),),
        features=(f"sm{gpu.capability}",),
    )


def tensorrt_nvfp4(device: str | None) -> Target:
    """E2M1 in blocks of 16 with scales of E4M3; activations find theirs at run time.

    Raises:
        TargetError: unknown device, or one without FP4 kernels.
    """
    gpu = get_gpu(device, assumed="sm120")
    if not gpu.fp4:
        raise TargetError(
            f"TensorRT has no FP4 kernels for {gpu.name}: they need SM100 or SM120 (Blackwell); use "
            "--target tensorrt-fp8 or tensorrt-int8, or name another --device"
        )
    source = "RTX: an FP4 product on SM120; a block is 16 along K, an odd N costs a kernel"
    rows = (
        OpSupport(
            "MatMul", "compute", (0,), weight=1, weight_axis=-1, weight_ranks=(2,),
            quantized_output=False, few_channels=_FP4_BLOCK, block=_FP4_BLOCK, source=source,
        ),
        OpSupport(
            "Gemm", "compute", (0,), weight=1, weight_axis="auto", weight_ranks=(2,),
            quantized_output=False, few_channels=_FP4_BLOCK, block=_FP4_BLOCK,
            allowed={"transA": (None, 0)}, source=source,
        ),
    )  # fmt: skip
    return replace(
        tensorrt_fp8("sm120"),
        name="tensorrt-nvfp4",
        device=gpu.name,
        ops={r.op_type: r for r in rows},
        left_float={**_LEFT_FLOAT, "Conv": "TensorRT has no FP4 convolution"},
        precision=NVFP4,
        qdq_opset=_FP4_OPSET,
        per_channel_opset=_FP4_OPSET,
        opset=_FP4_OPSET,
        rest_opsets={},
        notes=(_note(gpu),),
        features=(f"sm{gpu.capability}",),
    )


def tensorrt_int4(device: str | None) -> Target:
    """Weights alone: INT4 in blocks of 64 along K, edges INT8 per output channel; no activation is rounded.

    Raises:
        TargetError: unknown device, or one without INT4.
    """
    gpu = get_gpu(device)
    if not gpu.int4:
        raise TargetError(
            f"TensorRT cannot compile INT4 for {gpu.name}: it needs SM80 (Ampere) or later; use "
            "--target tensorrt-fp16, or name another --device"
        )
    form = WeightForm(
        4,
        64,
        dequantized=True,
        source="tried RTX for SM80, SM86, SM89, SM120: one kernel with blocks of 16 to 256 that divide K and "
        "are smaller, an even N, INT4 without zero point; INT8 with a scale per channel; SM75 refuses",
    )
    return replace(
        _half("tensorrt-int4", "fp16", gpu),
        weight=QuantSpec("int4", symmetric=True),
        left_float={},
        weights=form,
        precision="int4-weights",
        rests=("fp16", "bf16", "fp32"),
        qdq_opset=_BLOCKS_OPSET,
        per_channel_opset=_BLOCKS_OPSET,
        opset=_BLOCKS_OPSET,
    )


def tensorrt_fp16(device: str | None) -> Target:
    """Everything in float16 whose values fit; no integers."""
    return _half("tensorrt-fp16", "fp16", get_gpu(device))


def tensorrt_bf16(device: str | None) -> Target:
    """Everything in bfloat16 whose sums do not need more digits; no integers.

    Raises:
        TargetError: unknown device, or one without bfloat16 kernels.
    """
    gpu = get_gpu(device)
    if gpu.capability < 80:
        raise TargetError(
            f"TensorRT has no bfloat16 kernels for {gpu.name}: they need SM80 (Ampere) or later; "
            "use --target tensorrt-fp16, or name another --device"
        )
    return _half("tensorrt-bf16", "bf16", gpu)


def _half(name: str, rest: str, gpu: Gpu) -> Target:
    table = tensorrt_int8("sm80")
    text = {"fp16": "float16", "bf16": "bfloat16"}[rest]
    left = dict.fromkeys(("Conv", "MatMul", "Gemm", *table.left_float), f"the target is {text}")
    return replace(
        table,
        name=name,
        device=gpu.name,
        ops={},
        left_float=left,
        rests=(rest,),
        opset=table.rest_opsets.get(rest, table.opset),
        notes=(_note(gpu),),
        features=(f"sm{gpu.capability}",),
    )


def _note(gpu: Gpu) -> str:
    if gpu.assumed:
        return f"no NVIDIA GPU here: the rules of SM{gpu.capability} and later; name yours with --device"
    return f"{gpu.name}: compute capability {gpu.capability / 10:.1f} ({gpu.source})"
