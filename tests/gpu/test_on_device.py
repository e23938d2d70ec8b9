"""On a machine with an NVIDIA GPU: build, run, compare and time what the targets write.

Skipped elsewhere, with the reason. `python tests/gpu/run.py` runs it unattended and collects the figures.
"""

from __future__ import annotations

import importlib.util
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import qcompile
from qcompile.backends.devices_gpu import get_gpu
from qcompile.backends.ort import gpu_provider
from qcompile.engine_run import run_engine
from qcompile.ir.errors import TargetError

MODELS = Path(__file__).parents[2] / "models"
KEPT = os.environ.get("QCOMPILE_GPU_RESULTS")


def _device() -> Any:
    path = Path(qcompile.__file__).parent / "deploy" / "device.py"
    spec = importlib.util.spec_from_file_location("device_script", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _missing() -> str:
    """Why nothing can be run here, "" where it can."""
    device = _device()
    if device.library() is None:
        return "no TensorRT here"
    try:
        device.Cuda()
    except OSError as e:
        return f"no usable GPU here: {e}"
    return ""


WHY = _missing()
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(bool(WHY), reason=WHY or "there is a GPU")]


def _feeds(path: Path) -> list[dict[str, Any]]:
    graph = onnx.load(path).graph
    rng = np.random.default_rng(0)
    shape = [d.dim_value or 1 for d in graph.input[0].type.tensor_type.shape.dim]
    return [{graph.input[0].name: rng.random(shape, np.float32)} for _ in range(16)]


@pytest.mark.parametrize("model", ["fmnist_cnn", "fmnist_dwcnn", "fmnist_vit"])
@pytest.mark.parametrize(
    ("target", "kernels"),
    [
        ("tensorrt-int8", "int8"),
        ("tensorrt-fp8", "fp8"),
        ("tensorrt-nvfp4", "fp4"),
        ("tensorrt-fp16", ""),
        ("tensorrt-bf16", ""),
    ],
)
def test_the_engine_computes_what_its_graph_says(
    tmp_path: Path, model: str, target: str, kernels: str
) -> None:
    path = MODELS / f"{model}.onnx"
    if target == "tensorrt-nvfp4" and model != "fmnist_vit":
        pytest.skip("it holds no product that FP4 takes")
    try:
        result = qcompile.compile(
            path, target=target, calibration=_feeds(path), output=tmp_path / "a", threads=1
        )
    except TargetError as e:
        pytest.skip(f"{get_gpu().name}: {e}")
    assert result.exit_code == 0, result.headlines()
    done = run_engine(result.path, ["--seconds=2"])
    found = done.result
    # kernels of 16 bits round what lies between the layers differently
    assert found["agreement_db"] is None or found["agreement_db"] > 25
    assert found["accuracy_db"] is None or found["accuracy_db"] > 10
    assert set(found["p50_ms"]) >= {target.removeprefix("tensorrt-"), "float"}
    if kernels:
        assert found["kernels"].get(kernels, 0) > 0, "nothing was realised in few bits"
    if KEPT:
        place = Path(KEPT) / f"{model}.{target}.json"
        place.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    again = run_engine(result.path, ["--seconds=0.1"])
    assert again.result["tensorrt"] == found["tensorrt"], "the second run takes the cached engine"


def test_half_precision_is_timed_with_a_provider_that_really_runs(tmp_path: Path) -> None:
    if gpu_provider() is None:
        pytest.skip("ONNX Runtime here has no GPU provider that starts")
    path = MODELS / "fmnist_cnn.onnx"
    result = qcompile.compile(
        path, target="ort-fp16", calibration=_feeds(path), output=tmp_path / "a", min_speedup=0.01
    )
    assert result.verdict == "delivered"
    assert result.report.speedup is not None
