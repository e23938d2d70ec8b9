"""Other ways to run what an artifact for TensorRT holds: polygraphy, and ONNX Runtime's own provider.

Both compare with the same stored samples as ``deploy/device.py``: outputs of the Q/DQ graph in ONNX
Runtime on the CPU, and of the float model.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from qcompile.artifact import open_artifact
from qcompile.backends.ort import Session, open_session, runtime_version
from qcompile.backends.trt_polygraphy import run_polygraphy
from qcompile.compare import SQNR_MAX, OutputComparison, compare_outputs
from qcompile.engine_run import EngineRun, complete
from qcompile.ir.errors import OptionError
from qcompile.needed import Needed
from qcompile.verdict import DELIVERED, NOT_DELIVERED, NOT_MEASURED

__all__ = ["checked_by_polygraphy", "reached", "run_provider"]

SECONDS = 5.0
"""Time for timing."""

Feeds = Sequence[Mapping[str, Any]]


def checked_by_polygraphy(folder: Path, done: EngineRun) -> EngineRun:
    """The run with what polygraphy makes of the engine that was built.

    Raises:
        BackendMissingError: polygraphy, the library or a GPU is missing.
    """
    engine, library = folder / "model.engine", str(done.result.get("library", "tensorrt"))
    version, outputs = run_polygraphy(engine, _stored(folder, "sample_in"), library)
    found = {"version": version, **_compared(folder, outputs)}
    agreement = found["agreement_db"]
    text = "the same" if agreement is None else f"{agreement:.1f} dB"
    said = f"{done.headline}; polygraphy: {text} to the Q/DQ graph"
    return complete(folder, done.result | {"polygraphy": found}, said)


def run_provider(folder: Path, seconds: float | None = None) -> EngineRun:
    """Verify and time an artifact with ONNX Runtime's TensorRT provider, and complete its report.

    Raises:
        OutputError: no artifact.
        OptionError: one without options for the provider.
        BackendMissingError: the provider does not start here; the artifact stays as it was.
    """
    artifact = open_artifact(folder)
    deploy = folder / "deploy"
    path = deploy / "provider_options.json"
    if not path.is_file():
        raise OptionError(
            f"'{folder}' has no deploy/provider_options.json: it is for "
            f"{artifact.manifest.get('target')}, which ONNX Runtime's TensorRT provider cannot run"
        )
    asked = json.loads(path.read_text(encoding="utf-8"))
    spec = json.loads((deploy / "device_spec.json").read_text(encoding="utf-8"))
    name, options = asked["providers"][0]
    options = _placed(options, deploy)

    def opened(model: Path) -> Session:
        return open_session(
            model, config=asked["session_options"], provider=name, provider_options=options
        )

    own = spec["precision"]
    sessions = {own: opened(folder / "model.qdq.onnx")}
    feeds = _stored(folder, "sample_in")
    found = _compared(folder, [sessions[own].run(feed) for feed in feeds])
    base = next((w for w in ("fp16", "bf16", "float") if (deploy / f"{w}.onnx").is_file()), "")
    if base and base != own:
        sessions[base] = opened(deploy / f"{base}.onnx")
    times = _interleaved(sessions, feeds[0], SECONDS if seconds is None else seconds)
    ratio = times[base] / times[own] if base in times else None
    found |= {
        "provider": name,
        "onnxruntime": runtime_version(),
        "p50_ms": times,
        "speedup": ratio,
        "baseline": base,
        "min_sqnr": spec["min_sqnr"],
    }
    reached = found["accuracy_db"] is None or found["accuracy_db"] >= spec["min_sqnr"]
    fast = ratio is None or ratio >= spec["min_speedup"]
    word = NOT_DELIVERED if not (reached and fast) else NOT_MEASURED if ratio is None else DELIVERED
    found["verdict"] = word
    figures = "" if ratio is None else f": {ratio:.2f}x the speed of {base}"
    return complete(folder, found, f"{word.upper()}{figures} with {name}", key="provider_run")


def _placed(options: Mapping[str, str], deploy: Path) -> dict[str, str]:
    """Options whose folders lie in the artifact, wherever it is opened from."""
    placed = {k: str(deploy / v) if k.endswith("_path") else v for k, v in options.items()}
    for key, value in placed.items():
        if key.endswith("_path"):
            Path(value).mkdir(exist_ok=True)
    return placed


def _stored(folder: Path, name: str) -> list[dict[str, Any]]:
    with np.load(folder / "deploy" / f"{name}.npz") as stored:
        names = json.loads(bytes(stored["names"]).decode())
        count = int(stored["count"])
        return [{n: stored[f"{i}_{j}"] for j, n in enumerate(names)} for i in range(count)]


def _compared(folder: Path, outputs: Feeds) -> dict[str, Any]:
    """SQNR of the worst float output against the Q/DQ graph and against the float model.

    Against the float model it is the limit that is just kept: kinds of channels need less (``Needed``).
    """
    spec = json.loads((folder / "deploy" / "device_spec.json").read_text(encoding="utf-8"))
    against_float = reached(_stored(folder, "float_out"), outputs, Needed.of(spec["min_sqnr"]))
    whole = Needed.of(SQNR_MAX)
    return {
        "agreement_db": reached(_stored(folder, "sample_out"), outputs, whole),
        "accuracy_db": against_float,
    }


def reached(wanted: Feeds, got: Feeds, needed: Needed) -> float | None:
    """The limit that the outputs just keep; None where nothing differs or no output is float."""
    compared: dict[str, OutputComparison] = {}
    for index, (ref, other) in enumerate(zip(wanted, got, strict=True)):
        both = {name: array for name, array in ref.items() if name in other}
        compare_outputs(compared, str(index), None, both, other)
    results = [c.result() for c in compared.values()]
    if any(r.nonfinite for r in results):
        return -SQNR_MAX
    reached = [needed.reached_db(r.sqnr_db, r.channels_db) for r in results if r.max_abs_error]
    return min((db for db in reached if db is not None), default=None)


def _interleaved(
    sessions: Mapping[str, Session], feed: Mapping[str, Any], seconds: float
) -> dict[str, float]:
    """Median milliseconds of each session, run in turn."""
    times: dict[str, list[float]] = {name: [] for name in sessions}
    for session in sessions.values():
        session.run(feed)
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(next(iter(times.values()))) < 3:
        for name, session in sessions.items():
            start = time.perf_counter()
            session.run(feed)
            times[name].append((time.perf_counter() - start) * 1e3)
    return {name: float(np.median(t)) for name, t in times.items()}
