"""Quantizes one model with another tool, in whatever interpreter has that tool.

    python benchmarks/peer.py PEER MODEL.onnx CALIBRATION_FOLDER OUT.onnx
    python benchmarks/peer.py --installed

This folder alone may import other quantizers. Each is called as its documentation shows for static
INT8 on a CPU; that is what a user would get. The second form prints, as JSON, which peers this
interpreter has, with their versions. What goes wrong ends in a last line "error: ..." and exit code 1.
"""

from __future__ import annotations

import importlib.metadata
import json
import platform
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

Feeds = list[dict[str, Any]]

QDQ_OPSET = 13
"""From here on QuantizeLinear has an axis, which scales per channel need."""

UPGRADED = 17
"""What a model below is raised to by hand."""


class Reader:
    """Calibration data as ONNX Runtime's and Quark's quantizers ask for them."""

    def __init__(self, feeds: Feeds) -> None:
        self.left = iter(feeds)

    def get_next(self) -> Any:
        return next(self.left, None)


def ort_quantize(model: str, feeds: Feeds, out: str, **more: Any) -> None:
    """ONNX Runtime's static quantizer, after its own preprocessing where that works."""
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class OrtReader(Reader, CalibrationDataReader):  # type: ignore[misc]
        pass

    prepared = f"{out}.prepared"
    try:
        quant_pre_process(model, prepared, skip_symbolic_shape=True)
    except Exception as e:  # noqa: BLE001 - any failure of it; the quantizer may still work
        print(f"preprocessing failed: {e!r}"[:200])
        prepared = model
    kinds = {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8}
    quantize_static(prepared, out, OrtReader(feeds), per_channel=True, **(kinds | more))


def ort_qdq(model: str, feeds: Feeds, out: str) -> None:
    """Q/DQ form."""
    ort_quantize(model, feeds, out)


def upgraded(model: str, out: str) -> str:
    """The model at an opset that has scales per channel: what an expert does first."""
    import onnx
    from onnx import version_converter

    loaded = onnx.load(model)
    if max(o.version for o in loaded.opset_import if o.domain in ("", "ai.onnx")) >= QDQ_OPSET:
        return model
    path = f"{out}.upgraded"
    onnx.save(version_converter.convert_version(loaded, UPGRADED), path)
    return path


def ort_qdq_up(model: str, feeds: Feeds, out: str) -> None:
    """Q/DQ form, after raising the opset where it is too low."""
    ort_quantize(upgraded(model, out), feeds, out)


def ort_entropy(model: str, feeds: Feeds, out: str) -> None:
    """The same with ranges of least divergence."""
    from onnxruntime.quantization import CalibrationMethod

    ort_quantize(upgraded(model, out), feeds, out, calibrate_method=CalibrationMethod.Entropy)


def ort_percentile(model: str, feeds: Feeds, out: str) -> None:
    """The same with ranges that cut outliers off."""
    from onnxruntime.quantization import CalibrationMethod

    ort_quantize(upgraded(model, out), feeds, out, calibrate_method=CalibrationMethod.Percentile)


def ort_qop(model: str, feeds: Feeds, out: str) -> None:
    """Operator form."""
    from onnxruntime.quantization import QuantFormat

    ort_quantize(model, feeds, out, quant_format=QuantFormat.QOperator)


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


def quark(model: str, feeds: Feeds, out: str) -> None:
    """AMD Quark: uint8 activations, int8 weights."""
    from quark.onnx import (  # type: ignore[import-not-found]
        Int8Spec,
        ModelQuantizer,
        QConfig,
        QLayerConfig,
        UInt8Spec,
    )

    layer = QLayerConfig(activation=UInt8Spec(), weight=Int8Spec())
    ModelQuantizer(QConfig(global_config=layer)).quantize_model(model, out, Reader(feeds))


def aimet(model: str, feeds: Feeds, out: str) -> None:
    """Qualcomm's AIMET, exported as Q/DQ."""
    import onnx
    from aimet_onnx import QuantizationSimModel  # type: ignore[import-not-found]

    simulated = QuantizationSimModel(onnx.load(model), param_type="int8", activation_type="int8")
    simulated.compute_encodings(feeds)
    onnx.save(simulated.to_onnx_qdq(), out)


def onnxsim_float(model: str, _: Feeds, out: str) -> None:
    """onnxsim's simplified float model: what fusing and folding alone bring."""
    import onnx
    import onnxsim  # type: ignore[import-not-found]

    onnx.save(onnxsim.simplify(onnx.load(model))[0], out)


def onnxsim_int8(model: str, feeds: Feeds, out: str) -> None:
    """onnxsim's static quantization of products and convolutions."""
    import onnx
    import onnxsim

    simplified, _ = onnxsim.simplify(onnx.load(model))
    onnx.save(onnxsim.quantize_static(simplified, feeds), out)


def onnxsim_full(model: str, feeds: Feeds, out: str) -> None:
    """onnxsim's static quantization of every activation."""
    import onnx
    import onnxsim

    simplified, _ = onnxsim.simplify(onnx.load(model))
    onnx.save(onnxsim.quantize_static(simplified, feeds, full_graph=True), out)


def ort_trt(model: str, feeds: Feeds, out: str) -> None:
    """ONNX Runtime's static quantizer as TensorRT needs it: symmetric, float biases, inputs only."""
    from onnxruntime.quantization import QuantType

    products = ["Conv", "Gemm", "MatMul"]
    ort_quantize(
        upgraded(model, out),
        feeds,
        out,
        op_types_to_quantize=products,
        activation_type=QuantType.QInt8,
        extra_options={
            "ActivationSymmetric": True,
            "WeightSymmetric": True,
            "AddQDQPairToWeight": True,
            "QuantizeBias": False,
            "OpTypesToExcludeOutputQuantization": products,
        },
    )


def modelopt_trt(model: str, feeds: Feeds, out: str, **more: Any) -> None:
    """NVIDIA Model-Optimizer with its defaults: INT8, the rest in float16."""
    from modelopt.onnx.quantization import quantize
    from onnxruntime.quantization import CalibrationDataReader

    class ModeloptReader(Reader, CalibrationDataReader):  # type: ignore[misc]
        """One feed after the other, so that they may differ in shape; it is read several times."""

        def get_first(self) -> Any:
            return feeds[0]

        def rewind(self) -> None:
            self.left = iter(feeds)

    reader = ModeloptReader(feeds)
    quantize(
        model,
        "int8",
        calibration_data_reader=reader,
        calibration_eps=["cpu"],
        output_path=out,
        **more,
    )


def modelopt_trt_max(model: str, feeds: Feeds, out: str) -> None:
    """The same with ranges from minimum to maximum."""
    modelopt_trt(model, feeds, out, calibration_method="max")


def half_naive(model: str, _: Feeds, out: str) -> None:
    """Everything cast to float16, as onnxconverter-common does it when asked nothing else."""
    import onnx
    from onnxconverter_common import float16  # type: ignore[import-not-found]

    loaded = onnx.load(model)
    onnx.save(float16.convert_float_to_float16(loaded, keep_io_types=True), out)


@dataclass(frozen=True)
class Peer:
    """Another tool's way to quantize.

    Attributes:
        tool: what it belongs to; several peers may be ways of one tool.
        packages: names as pip knows them; one of them is enough.
        call: model, feeds, output.
        engines: made for TensorRT; a table of CPU latencies leaves it out.
        is_float: quantizes nothing, a baseline.
    """

    tool: str
    packages: tuple[str, ...]
    call: Callable[[str, Feeds, str], None]
    engines: bool = False
    is_float: bool = False


ORT = ("onnxruntime", "onnxruntime-gpu")

PEERS = {
    "ort-qdq": Peer("ort", ORT, ort_qdq),
    "ort-qdq-up": Peer("ort", ORT, ort_qdq_up),
    "ort-entropy": Peer("ort", ORT, ort_entropy),
    "ort-percentile": Peer("ort", ORT, ort_percentile),
    "ort-qop": Peer("ort", ORT, ort_qop),
    "ort-dynamic": Peer("ort", ORT, ort_dynamic),
    "nncf": Peer("nncf", ("nncf",), nncf),
    "modelopt": Peer("modelopt", ("nvidia-modelopt",), modelopt),
    "quark": Peer("quark", ("amd-quark",), quark),
    "aimet": Peer("aimet", ("aimet-onnx",), aimet),
    "onnxsim-float": Peer("onnxsim", ("onnxsim",), onnxsim_float, is_float=True),
    "onnxsim-int8": Peer("onnxsim", ("onnxsim",), onnxsim_int8),
    "onnxsim-full": Peer("onnxsim", ("onnxsim",), onnxsim_full),
    "ort-trt": Peer("ort", ORT, ort_trt, engines=True),
    "modelopt-trt": Peer("modelopt", ("nvidia-modelopt",), modelopt_trt, engines=True),
    "modelopt-trt-max": Peer("modelopt", ("nvidia-modelopt",), modelopt_trt_max, engines=True),
    "half-naive": Peer("half", ("onnxconverter-common",), half_naive, engines=True),
}
"""In the order of a table's rows."""


def version_of(*packages: str) -> str | None:
    """ "nncf 3.4.0": the first that this interpreter has."""
    for package in packages:
        try:
            return f"{package} {importlib.metadata.version(package)}"
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def installed() -> dict[str, str]:
    """The peers that this interpreter has, with the versions that decide what they do."""
    found = {}
    for name, peer in PEERS.items():
        own = version_of(*peer.packages)
        if own is not None:
            beside = [v for v in (version_of("onnx"), version_of(*ORT)) if v not in (None, own)]
            python = f"Python {platform.python_version()}"
            found[name] = f"{own} ({', '.join([*map(str, beside), python])})"
    return found


def main(arguments: list[str]) -> int:
    """Quantize, or tell what is installed."""
    if arguments == ["--installed"]:
        print(json.dumps(installed()))
        return 0
    name, model, folder, out = arguments
    feeds: Feeds = []
    for file in sorted(Path(folder).glob("*.npz")):
        with np.load(file) as arrays:
            feeds.append({key: arrays[key] for key in arrays.files})
    try:
        PEERS[name].call(model, feeds, out)
    except Exception as e:  # noqa: BLE001 - whatever the tool raises is its answer
        traceback.print_exc()
        told = next((line for line in str(e).splitlines() if line.strip()), "no message")
        print(f"error: {type(e).__name__}: {told.strip()}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
