"""Quantizes one model with another tool, in whatever interpreter has that tool.

    python benchmarks/peer.py PEER MODEL.onnx CALIBRATION_FOLDER OUT.onnx

This folder alone may import other quantizers. Each is called as its documentation shows for static
INT8 on a CPU; that is what a user would get. ``--installed`` prints those that this interpreter has.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

Feeds = list[dict[str, Any]]


def ort_static(model: str, feeds: Feeds, out: str, form: str) -> None:
    """ONNX Runtime's static quantizer, after its own preprocessing where that works."""
    from onnxruntime.quantization import (
        CalibrationDataReader,
        QuantFormat,
        QuantType,
        quantize_static,
    )
    from onnxruntime.quantization.shape_inference import (
        quant_pre_process,
    )

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.left = iter(feeds)

        def get_next(self) -> Any:
            return next(self.left, None)

    prepared = f"{out}.prepared"
    try:
        quant_pre_process(model, prepared, skip_symbolic_shape=True)
    except Exception as e:  # noqa: BLE001 - any failure of it; the quantizer may still work
        print(f"preprocessing failed: {e!r}"[:200])
        prepared = model
    quantize_static(
        prepared,
        out,
        Reader(),
        quant_format=getattr(QuantFormat, form),
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        per_channel=True,
    )


def ort_qdq(model: str, feeds: Feeds, out: str) -> None:
    """Q/DQ form."""
    ort_static(model, feeds, out, "QDQ")


def ort_qop(model: str, feeds: Feeds, out: str) -> None:
    """Operator form."""
    ort_static(model, feeds, out, "QOperator")


def ort_dynamic(model: str, _: Feeds, out: str) -> None:
    """Scales found at run time; no data needed."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(model, out, weight_type=QuantType.QInt8, per_channel=True)


def nncf(model: str, feeds: Feeds, out: str) -> None:
    """NNCF's post-training quantization."""
    import nncf as tool  # type: ignore[import-not-found]
    import onnx

    quantized = tool.quantize(
        onnx.load(model),
        tool.Dataset(feeds),
        subset_size=len(feeds),
        preset=tool.QuantizationPreset.MIXED,
    )
    onnx.save(quantized, out)


def modelopt(model: str, feeds: Feeds, out: str) -> None:
    """NVIDIA Model-Optimizer."""
    from modelopt.onnx.quantization import quantize  # type: ignore[import-not-found]

    data = {name: np.concatenate([feed[name] for feed in feeds]) for name in feeds[0]}
    quantize(
        model,
        quantize_mode="int8",
        calibration_data=data,
        calibration_method="max",
        calibration_eps=["cpu"],
        output_path=out,
        high_precision_dtype="fp32",
    )


def ort_trt(model: str, feeds: Feeds, out: str) -> None:
    """ONNX Runtime's static quantizer as TensorRT needs it: symmetric, float biases, inputs only."""
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.left = iter(feeds)

        def get_next(self) -> Any:
            return next(self.left, None)

    prepared = f"{out}.prepared"
    try:
        quant_pre_process(model, prepared, skip_symbolic_shape=True)
    except Exception as e:  # noqa: BLE001 - any failure of it; the quantizer may still work
        print(f"preprocessing failed: {e!r}"[:200])
        prepared = model
    products = ["Conv", "Gemm", "MatMul"]
    quantize_static(
        prepared,
        out,
        Reader(),
        op_types_to_quantize=products,
        activation_type=QuantType.QInt8,
        weight_type=QuantType.QInt8,
        per_channel=True,
        extra_options={
            "ActivationSymmetric": True,
            "WeightSymmetric": True,
            "AddQDQPairToWeight": True,
            "QuantizeBias": False,
            "OpTypesToExcludeOutputQuantization": products,
        },
    )


def modelopt_trt(model: str, feeds: Feeds, out: str) -> None:
    """NVIDIA Model-Optimizer with its defaults: INT8, the rest in float16."""
    from modelopt.onnx.quantization import quantize

    data = {name: np.concatenate([feed[name] for feed in feeds]) for name in feeds[0]}
    quantize(model, "int8", calibration_data=data, calibration_eps=["cpu"], output_path=out)


def half_naive(model: str, _: Feeds, out: str) -> None:
    """Everything cast to float16, as onnxconverter-common does it when asked nothing else."""
    import onnx
    from onnxconverter_common import float16  # type: ignore[import-not-found]

    loaded = onnx.load(model)
    onnx.save(float16.convert_float_to_float16(loaded, keep_io_types=True), out)


PEERS: dict[str, tuple[str, Callable[[str, Feeds, str], None]]] = {
    "ort-qdq": ("onnxruntime.quantization", ort_qdq),
    "ort-qop": ("onnxruntime.quantization", ort_qop),
    "ort-dynamic": ("onnxruntime.quantization", ort_dynamic),
    "nncf": ("nncf", nncf),
    "modelopt": ("modelopt", modelopt),
    "ort-trt": ("onnxruntime.quantization", ort_trt),
    "modelopt-trt": ("modelopt", modelopt_trt),
    "half-naive": ("onnxconverter_common", half_naive),
}
"""name -> (package, call)."""


def installed() -> list[str]:
    """The peers whose package this interpreter finds."""

    def there(package: str) -> bool:
        try:
            return importlib.util.find_spec(package) is not None
        except ModuleNotFoundError:
            return False

    return [name for name, (package, _) in PEERS.items() if there(package)]


def main(arguments: list[str]) -> int:
    """Quantize, or tell what is installed."""
    if arguments == ["--installed"]:
        print(" ".join(installed()))
        return 0
    name, model, folder, out = arguments
    feeds: Feeds = []
    for file in sorted(Path(folder).glob("*.npz")):
        with np.load(file) as arrays:
            feeds.append({key: arrays[key] for key in arrays.files})
    PEERS[name][1](model, feeds, out)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
