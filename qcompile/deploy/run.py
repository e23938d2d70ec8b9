"""Run this artifact: needs only Python 3.8+, onnxruntime and numpy.

usage: run.py [--threads N] [--time SECONDS] [--float original.onnx] [--json device.json]

Opens model.onnx, runs the stored samples, compares with the stored outputs, and times it; with
--float also the original model, interleaved, and writes the verdict for this machine.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

HERE = Path(__file__).resolve().parent


def samples(name: str) -> list[dict[str, Any]]:
    """Stored arrays: sample number -> {tensor name: array}."""
    with np.load(str(HERE / name)) as stored:
        names = json.loads(bytes(stored["names"]).decode())
        return [
            {n: stored[f"{i}_{j}"] for j, n in enumerate(names)}
            for i in range(int(stored["count"]))
        ]


def open_model(path: Path | str, threads: int) -> Any:
    """A session with default options, but for the threads."""
    options = ort.SessionOptions()
    if threads:
        options.intra_op_num_threads = threads
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def sqnr(reference: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> float:
    """Least SQNR in dB over the float outputs of all samples."""
    worst = float("inf")
    for name in reference[0]:
        if reference[0][name].dtype.kind != "f":
            continue
        signal = sum(float((r[name].astype(np.float64) ** 2).sum()) for r in reference)
        pairs = zip(reference, outputs)
        noise = sum(float(((r[name].astype(np.float64) - o[name]) ** 2).sum()) for r, o in pairs)
        if not np.isfinite(signal + noise):
            return -float("inf")  # NaN or infinity in either is never equal
        if signal > 0 and noise > 0:
            worst = min(worst, 10 * float(np.log10(signal / noise)))
    return worst


def interleaved(sessions: dict[str, Any], feed: dict[str, Any], seconds: float) -> dict[str, float]:
    """Median milliseconds of each session, run in turn, and the ratio of each to the first."""
    times: dict[str, list[float]] = {name: [] for name in sessions}
    for session in sessions.values():
        session.run(None, feed)
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(next(iter(times.values()))) < 5:
        for name, session in sessions.items():
            session.run(None, feed)
            repeats = 3
            start = time.perf_counter()
            for _ in range(repeats):
                session.run(None, feed)
            times[name].append((time.perf_counter() - start) / repeats * 1e3)
    return {name: float(np.median(t)) for name, t in times.items()}


def main() -> int:
    """Compare, time, tell; exit code 1 when the outputs differ from the stored ones."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--time", type=float, default=2.0)
    parser.add_argument("--float", dest="original")
    parser.add_argument("--json", dest="result")
    args = parser.parse_args()
    feeds, stored = samples("sample_in.npz"), samples("sample_out.npz")
    session = open_model(HERE.parent / "model.onnx", args.threads)
    names = [o.name for o in session.get_outputs()]
    outputs = [dict(zip(names, session.run(names, feed))) for feed in feeds]
    agreement = sqnr(stored, outputs)
    same = agreement >= 30
    print(
        f"{len(feeds)} stored samples: outputs agree to {agreement:.1f} dB"
        + ("" if same else "  DIFFERENT")
    )
    sessions = {"artifact": session}
    if args.original:
        sessions = {"float": open_model(args.original, args.threads), **sessions}
    times = interleaved(sessions, feeds[0], args.time)
    for name, ms in times.items():
        print(f"{name}: {ms:.3f} ms p50, onnxruntime {ort.__version__}, {platform.machine()}")
    verdict: dict[str, Any] = {
        "agreement_db": agreement if np.isfinite(agreement) else None,
        "p50_ms": times,
        "onnxruntime": ort.__version__,
        "machine": platform.machine(),
        "threads": args.threads or None,
    }
    if args.original:
        ratio = times["float"] / times["artifact"]
        verdict["speedup"] = ratio
        verdict["verdict"] = "delivered" if same and ratio >= 1 else "not delivered"
        print(f"{verdict['verdict'].upper()}: {ratio:.2f}x the speed of float on this machine")
    if args.result:
        Path(args.result).write_text(json.dumps(verdict, indent=1) + "\n", encoding="utf-8")
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
