"""Reports of made-up compiles, of any size."""

from __future__ import annotations

from typing import Any

__all__ = ["make_report"]


def make_report(blocks: int = 3, name: str = "model.onnx") -> dict[str, Any]:
    """A chain of residual blocks (Conv, Relu, Conv, Add): four layers each."""
    nodes, layers, tensors = [], [], []
    last = "image"
    for b in range(blocks):
        start = last
        for op, reads in (("Conv", None), ("Relu", None), ("Conv", None), ("Add", start)):
            origin = f"/block{b}/{op}{len(nodes)}"
            writes = f"{origin}_out"
            read = [last] if reads is None else [last, reads]
            time = {"float_ns": 900 + 7 * b, "artifact_ns": 400 if op == "Conv" else 90}
            row = {"origin": origin, "op_type": op, "reads": read, "writes": [writes]}
            nodes.append(row | time | {"shape": "1x8x8x8", "sqnr_db": 60.0 - b % 40})
            layers.append(_layer(origin, op, b))
            tensors.append(_tensor(writes))
            last = writes
    return {
        "version": 1,
        "verdict": "delivered",
        "exit_code": 0,
        "headline": "DELIVERED 2.00x faster, SQNR 31.0 dB",
        "warnings": [],
        "next": "python o/deploy/run.py",
        "output": "o",
        "delivered_form": "quantized",
        "oldest_onnxruntime": {"version": "1.12", "because": ["opset 17"]},
        "model": {"name": name, "sha256": "0" * 64, "ir_version": 8, "opset": 17}
        | {"inputs": ["image: float32[1x3x8x8]"], "nodes": len(nodes)},
        "target": {"name": "ort-int8", "device": "x86-vnni", "notes": []},
        "inputs": {"model": "0" * 64, "data": "1" * 64, "target": "ort-int8"},
        "hashes": {"model.onnx": "2" * 64},
        "calibration": {"description": "8 samples", "random": False, "findings": ["few samples"]},
        "plan": {"how": "the best of 2", "candidates": _candidates(), "front": []},
        "layers": layers,
        "integer_mac_share": 1.0,
        "gate": _gate(),
        "passes": [{"name": "fold-constants", "changed": 1, "seconds": 0.01, "notes": []}],
        "notes": [{"where": layers[0]["origin"], "text": "weights moved", "changed": True}],
        "stages": [{"name": "plan", "seconds": 1.5}],
        "machine": {
            "system": "Linux",
            "machine": "x86_64",
            "cores": 2,
            "memory_bytes": 8_000_000_000,
        }
        | {"features": ["avx2"]},
        "versions": {"qcompile": "0.1.0", "python": "3.11.0"},
        "seed": 0,
        "graph": {"inputs": ["image"], "outputs": [last], "nodes": nodes},
        "tensors": tensors,
        "weights": [_weight(x["origin"]) for x in layers if x["op_type"] == "Conv"][:200],
        "operators": {
            "before": [{"op_type": "Conv", "count": 2, "ns": 1800}],
            "after": [{"op_type": "QLinearConv", "count": 2, "ns": 800}],
        },
        "samples": [_sample()],
        "left_out": [],
    }


def _layer(origin: str, op: str, block: int) -> dict[str, Any]:
    float_one = block == 1 and op == "Add"
    return {
        "origin": origin,
        "op_type": op,
        "requested": "float" if float_one else "int8",
        "realised": "float" if float_one else "int8",
        "executed_as": ["Add" if float_one else f"QLinear{op}"],
        "reason": "float is as fast here" if float_one else "the target has an integer kernel",
        "pinned": False,
        "sensitivity": 1e-5,
        "float_ns": 900,
        "int_ns": 400,
        "dynamic_ns": None,
        "macs": 4608 if op == "Conv" else 0,
        "compute": op == "Conv",
    }


def _tensor(name: str) -> dict[str, Any]:
    counts = [max(1, 4000 - 3 * (i - 20) ** 2) for i in range(48)]
    return {
        "name": name,
        "low": -1.25,
        "high": 1.75,
        "clip_low": -1.2,
        "clip_high": 1.5,
        "clipped": 0.0012,
        "zeros": 0.1,
        "method": "mse",
        "histogram": {"start": -1.25, "width": 0.0625, "counts": counts},
    }


def _weight(origin: str) -> dict[str, Any]:
    return {
        "origin": origin,
        "name": f"{origin}_w",
        "shape": [8, 8, 3, 3],
        "axis": 0,
        "channels": 8,
        "grouped": 1,
        "low": [-0.1 * (i + 1) for i in range(8)],
        "high": [0.05 * (i + 1) for i in range(8)],
        "histogram": {"start": -0.8, "width": 0.1, "counts": [1, 2, 8, 9, 30, 60, 200, 90, 9, 1]},
    }


def _candidates() -> list[dict[str, Any]]:
    given = [("all that can be integer", 0.5, 2.0, 31.0, True), ("a cut", 0.7, 1.4, 40.0, False)]
    return [
        {"name": n, "text": n, "ms": ms, "speedup": s, "sqnr_db": db, "refused": "", "chosen": c}
        for n, ms, s, db, c in given
    ]


def _gate() -> dict[str, Any]:
    ratio = {"value": 2.0, "low": 1.9, "high": 2.1, "count": 6}
    load = {"load_ms": 20.0, "first_ms": 2.0, "memory_bytes": 9_000_000, "errors": []}
    time = {"p50_ms": 1.0, "p90_ms": 1.1, "p99_ms": 1.2, "interval_ms": ratio, "runs": 9}
    return {
        "verdict": "delivered",
        "headline": "",
        "checks": [
            {"name": "opens", "state": "pass", "text": "ONNX Runtime opens it"}
            | {"found": None, "limit": None, "where": None}
        ],
        "outputs": [],
        "speed": {
            "models": {
                "float": time | {"speedup": None, "load": load},
                "artifact": time | {"p50_ms": 0.5, "speedup": ratio, "load": load},
            },
            "threads": 1,
        },
        "score": None,
        "float_bytes": 4_000_000,
        "artifact_bytes": 1_000_000,
        "samples": 2,
        "notes": [],
        "speedup": 2.0,
        "sqnr_db": 31.0,
    }


def _sample() -> dict[str, Any]:
    box = {"box": [40.0, 30.0, 20.0, 10.0], "score": 0.8, "label": "cat"}
    return {
        "name": "photo.png",
        "score": 21.5,
        "image": None,
        "outputs": [
            {"name": "boxes", "shape": "1x5x9", "kind": "boxes", "height": 60, "width": 80}
            | {"float": [box], "artifact": []},
            {"name": "scores", "shape": "1x2", "kind": "classes", "labels": ["cat", "dog"]}
            | {"float": [2.0, 1.0], "artifact": [1.9, None]},
        ],
    }
