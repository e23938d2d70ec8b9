"""The engine under polygraphy, and the Q/DQ model under one of ONNX Runtime's providers."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path
from typing import Any, ClassVar

import jsonschema
import numpy as np
import onnx
import pytest

import qcompile
from qcompile.backends.trt_polygraphy import run_polygraphy
from qcompile.cli.main import main
from qcompile.engine_run import EngineRun
from qcompile.engine_runners import checked_by_polygraphy, run_provider
from qcompile.ir.errors import BackendMissingError, OptionError
from tests.passes.qdq_models import text_model

RNG = np.random.default_rng(6)
_WORDS = """
    auxiliary_streams bf16_enable build_heuristics_enable builder_optimization_level
    context_memory_sharing_enable cuda_graph_enable detailed_build_log dla_core dla_enable
    dump_ep_context_model dump_subgraphs engine_cache_enable engine_cache_path engine_cache_prefix
    engine_hw_compatible ep_context_embed_mode ep_context_file_path extra_plugin_lib_paths
    force_sequential_engine_build force_timing_cache fp16_enable int8_calibration_table_name
    int8_enable int8_use_native_calibration_table layer_norm_fp32_fallback max_partition_iterations
    max_workspace_size min_subgraph_size op_types_to_exclude preview_features profile_max_shapes
    profile_min_shapes profile_opt_shapes sparsity_enable tactic_sources timing_cache_enable
    timing_cache_path weight_stripped_engine_enable
"""
KNOWN = frozenset(f"trt_{word}" for word in _WORDS.split())
"""Names in the provider's library of onnxruntime-gpu 1.31.1."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("m") / "m.onnx"
    proto = text_model(
        "g (float[n, 16, 8, 8] x) => (float[n, 16, 8, 8] y) { y = Conv <pads = [1, 1, 1, 1]> (x, w) }",
        w=(RNG.standard_normal((16, 16, 3, 3)) * 0.1).astype(np.float32),
    )
    onnx.save(proto, path)
    return path


def _artifact(model: Path, folder: Path, target: str = "tensorrt-int8", **options: Any) -> Path:
    feeds = [{"x": RNG.standard_normal((1, 16, 8, 8)).astype(np.float32)} for _ in range(8)]
    result = qcompile.compile(
        model, target=target, calibration=feeds, output=folder / "b", effort="fast", threads=1,
        **options,
    )  # fmt: skip
    assert result.exit_code == 0
    return result.path


@pytest.fixture
def artifact(model: Path, tmp_path: Path) -> Path:
    return _artifact(model, tmp_path)


def _options(artifact: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((artifact / "deploy" / "provider_options.json").read_text())
    return found


def test_options_are_the_providers_and_allow_the_precisions_of_the_graph(artifact: Path) -> None:
    name, options = _options(artifact)["providers"][0]
    assert name == "TensorrtExecutionProvider"
    assert set(options) <= KNOWN
    assert options["trt_int8_enable"] == options["trt_fp16_enable"] == "1"
    assert options["trt_profile_min_shapes"] == "x:1x16x8x8"
    assert "trt_bf16_enable" not in options


def test_other_rests_allow_their_own_type_and_fp8_has_no_word(model: Path, tmp_path: Path) -> None:
    wide = _artifact(model, tmp_path / "w", rest="fp32")
    assert "trt_fp16_enable" not in _options(wide)["providers"][0][1]
    eight = _artifact(model, tmp_path / "f", "tensorrt-fp8")
    assert not (eight / "deploy" / "provider_options.json").exists()
    with pytest.raises(OptionError, match="is for tensorrt-fp8, which ONNX Runtime's TensorRT"):
        run_provider(eight)


def test_a_provider_that_does_not_start_is_exit_4_and_changes_nothing(artifact: Path) -> None:
    before = (artifact / "report.json").read_bytes()
    with pytest.raises(BackendMissingError, match="has no TensorrtExecutionProvider here"):
        run_provider(artifact)
    assert main(["engine", str(artifact), "--ep"]) == 4
    assert (artifact / "report.json").read_bytes() == before


def test_a_provider_that_starts_is_compared_timed_and_reported(artifact: Path) -> None:
    path = artifact / "deploy" / "provider_options.json"
    asked = _options(artifact)
    asked["providers"][0] = ["CPUExecutionProvider", {}]
    path.write_text(json.dumps(asked))
    done = run_provider(artifact, seconds=0.05)
    assert done.result["agreement_db"] is None or done.result["agreement_db"] > 40
    assert done.result["accuracy_db"] > 20
    assert set(done.result["p50_ms"]) == {"int8", "fp16"}
    assert done.verdict in ("delivered", "not delivered")
    report = json.loads((artifact / "report.json").read_text())
    assert report["provider_run"]["baseline"] == "fp16"
    schema = Path(qcompile.__file__).parent / "report.schema.json"
    jsonschema.validate(report, json.loads(schema.read_text()))


def test_options_of_another_builder_are_refused(artifact: Path) -> None:
    assert main(["engine", str(artifact), "--ep", "--refit"]) == 2
    assert main(["engine", str(artifact), "--ep", "--polygraphy"]) == 2


class _Runner:
    """polygraphy's runner: it hands out the same buffer each time."""

    outputs: ClassVar[list[dict[str, Any]]] = []

    def __init__(self, engine: bytes) -> None:
        assert engine == b"engine"
        self.left = iter(self.outputs)
        self.buffer = np.zeros_like(self.outputs[0]["y"])

    def __enter__(self) -> _Runner:
        return self

    def __exit__(self, *_: object) -> None: ...

    def infer(self, feed_dict: dict[str, Any]) -> dict[str, Any]:
        assert set(feed_dict) == {"x"}
        self.buffer[:] = next(self.left)["y"]
        return {"y": self.buffer}


def _fake(monkeypatch: pytest.MonkeyPatch, runner: Any) -> None:
    root: Any = types.ModuleType("polygraphy")
    root.__version__ = "0.53.6"
    trt: Any = types.ModuleType("polygraphy.backend.trt")
    trt.EngineFromBytes, trt.TrtRunner = bytes, runner
    errors: Any = types.ModuleType("polygraphy.exception")
    errors.PolygraphyException = type("PolygraphyException", (Exception,), {})
    backend = types.ModuleType("polygraphy.backend")
    for name, module in {
        "polygraphy": root,
        "polygraphy.backend": backend,
        "polygraphy.backend.trt": trt,
        "polygraphy.exception": errors,
    }.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setenv("POLYGRAPHY_USE_TENSORRT_RTX", "0")


def test_polygraphys_outputs_are_compared_with_the_stored_ones(
    artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with np.load(artifact / "deploy" / "sample_out.npz") as stored:
        count = int(stored["count"])
        _Runner.outputs = [{"y": stored[f"{i}_0"] * np.float32(1.001)} for i in range(count)]
    _fake(monkeypatch, _Runner)
    (artifact / "model.engine").write_bytes(b"engine")
    before = EngineRun("delivered", "DELIVERED", 0, {"verdict": "delivered", "library": "tensorrt"})
    done = checked_by_polygraphy(artifact, before)
    assert done.result["polygraphy"]["version"] == "0.53.6"
    assert done.result["polygraphy"]["agreement_db"] == pytest.approx(60, abs=0.1)
    assert done.headline == "DELIVERED; polygraphy: 60.0 dB to the Q/DQ graph"


def test_an_engine_that_polygraphy_cannot_open_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(_: bytes) -> None:
        raise RuntimeError("no CUDA-capable\ndevice")

    _fake(monkeypatch, refuses)
    engine = tmp_path / "e"
    engine.write_bytes(b"engine")
    with pytest.raises(
        BackendMissingError, match="cannot run the engine here: no CUDA-capable device"
    ):
        run_polygraphy(engine, [{}], "tensorrt")


def test_the_names_of_the_real_polygraphy() -> None:
    trt = pytest.importorskip("polygraphy.backend.trt")
    exception = pytest.importorskip("polygraphy.exception")
    assert callable(trt.EngineFromBytes)
    assert callable(trt.TrtRunner)
    assert issubclass(exception.PolygraphyException, Exception)
