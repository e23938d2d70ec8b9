"""The figures and tables of the page that need no script, in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from qcompile.reasons import join_reasons
from qcompile.report_page.sample_view import view_sample

__all__ = ["summarize"]

Report = Mapping[str, Any]

LISTED = 200
"""Layers named under one reason."""


def summarize(report: Report) -> dict[str, Any]:
    """Figures, what stayed float and why, pass log, machine and hashes, ready to print."""
    return {
        "title": f"{report['model']['name']} for {report['target']['name']}",
        "state": report["verdict"].replace(" ", "-"),
        "headline": _headline(report),
        "figures": [f for f in _figures(report) if f],
        "left_float": _left_float(report["layers"]),
        "matrices": _matrices(report),
        "missed": [x for x in report["layers"] if x["requested"] != x["realised"]],
        "passes": [p | {"ms": f"{p['seconds'] * 1e3:.0f}"} for p in report["passes"]],
        "facts": _facts(report),
        "total_seconds": sum(s["seconds"] for s in report["stages"]),
        "samples": [view_sample(s) for s in report.get("samples") or []],
        "timed": report["gate"]["speed"] is not None,
    }


def _headline(report: Report) -> str:
    """The headline without the verdict's word, which stands beside it."""
    text = str(report["headline"]).removeprefix(report["verdict"].upper())
    return text.removeprefix(":").strip()


def _figures(report: Report) -> list[dict[str, str] | None]:
    gate = report["gate"]
    return [
        *_speed(gate["speed"]),
        _size(gate["float_bytes"], gate["artifact_bytes"]),
        _accuracy(gate),
        *_language(report.get("language")),
        _share(report),
        _oldest(report),
    ]


def _figure(label: str, value: str, more: str = "") -> dict[str, str]:
    return {"label": label, "value": value, "more": more}


def _speed(speed: Report | None) -> list[dict[str, str] | None]:
    if speed is None:
        return [_figure("Speed", "not measured")]
    before, after = speed["models"]["float"], speed["models"]["artifact"]
    ratio = after["speedup"]
    threads = speed["threads"]
    how = "default threads" if threads is None else f"{threads} thread{'s' * (threads != 1)}"
    tail = f"p99 {_ms(before['p99_ms'])} → {_ms(after['p99_ms'])} ms, {how}"
    found: list[dict[str, str] | None] = []
    if ratio is not None:
        inside = "timed too briefly for an interval"
        if ratio["high"] is not None:  # JSON has no infinity
            inside = f"{ratio['low']:.2f} to {ratio['high']:.2f} with 95 % confidence"
        found.append(_figure("Speed-up", f"{ratio['value']:.2f}×", inside))
    latency = _span(before["p50_ms"], after["p50_ms"])
    found.append(_figure("Latency, median", latency, tail))
    loads = before["load"], after["load"]
    if loads[0] and loads[1]:
        memory = " → ".join(f"{one['memory_bytes'] / 1e6:.0f}" for one in loads)
        took = _span(*(one["load_ms"] for one in loads))
        found.append(_figure("Loading", took, f"memory {memory} MB"))
    return found


def _span(before: float, after: float) -> str:
    """From one time to another, in a unit that both are short in."""
    if max(before, after) < 10_000:
        return f"{_ms(before)} → {_ms(after)} ms"
    return f"{_ms(before / 1e3)} → {_ms(after / 1e3)} s"


def _ms(value: float) -> str:
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"


def _size(before: int | None, after: int | None) -> dict[str, str] | None:
    if not before or not after:
        return None
    ratio = before / after
    more = f"{ratio:.1f}× smaller" if ratio >= 1 else f"{1 / ratio:.1f}× larger"
    return _figure("Size", f"{before / 1e6:.3g} → {after / 1e6:.3g} MB", more)


def _accuracy(gate: Report) -> dict[str, str] | None:
    sqnr = None if gate["sqnr_db"] is None else f"SQNR {gate['sqnr_db']:.1f} dB"
    more = f"{gate['samples']} held-back sample{'s' * (gate['samples'] != 1)}"
    score = gate["score"]
    if score is not None:
        name = str(score["name"]).rsplit("/", maxsplit=1)[-1]
        value = f"{score['float_score']:.3f} → {score['artifact_score']:.3f}"
        label = "Score" if name.lower() == "score" else f"Score ({name})"
        return _figure(label, value, f"{sqnr}, {more}" if sqnr else more)
    return None if sqnr is None else _figure("Accuracy", sqnr, more)


def _language(found: Report | None) -> list[dict[str, str] | None]:
    """Predictions and generation of a language model."""
    if not found or "perplexity" not in found:
        return []
    before, after = found["perplexity"]
    alike = f"{found['agreement']:.1%} of next tokens alike, KL {found['kl']:.4f} nats"
    figures: list[dict[str, str] | None] = [
        _figure("Perplexity", f"{before:.2f} → {after:.2f}", alike)
    ]
    made = found["decoding"]
    if made is None:
        return figures
    rates = " → ".join(f"{rate:.3g}" for rate in made["decode_tokens_per_s"])
    context = "behind a cache" if made["cached"] else "without a cache"
    figures.append(_figure("Decode, tokens/s", rates, f"{made['decode_speedup']:.2f}×, {context}"))
    figures += _alike(made)
    rates = " → ".join(f"{rate:.3g}" for rate in made["prefill_tokens_per_s"])
    figures.append(_figure("Prefill, tokens/s", rates, f"{made['prefill_tokens']} tokens at once"))
    return figures


def _alike(made: Report) -> list[dict[str, str] | None]:
    """What is generated beside float's; reports of earlier versions say less."""
    steps = made["greedy_steps"]
    same = f"{made['greedy_agreement'] * steps:.3g} of {steps} tokens"
    more = "before the first difference"
    ahead = made.get("next_tokens")
    if ahead:
        more += f", mean of {made['greedy_prompts']}; reading the text itself "
        more += f"{ahead['agreement']:.1%} of {ahead['steps']} steps"
    figures: list[dict[str, str] | None] = [_figure("Greedy as float", same, more)]
    if made.get("cache_bytes"):
        sizes = " → ".join(f"{size / 1e6:.3g}" for size in made["cache_bytes"])
        figures.append(_figure("Cache", f"{sizes} MB", f"{made['prefill_tokens']} tokens"))
    return figures


def _share(report: Report) -> dict[str, str] | None:
    layers = [x for x in report["layers"] if x["compute"] or x["macs"]]
    done = [x for x in layers if x["realised"] != "float"]
    share = report["integer_mac_share"]
    if share is None:
        return None
    more = f"of the multiply-adds; {len(done)} of {len(layers)} compute layers"
    return _figure("Integer", f"{share:.0%}", more)


def _oldest(report: Report) -> dict[str, str] | None:
    oldest = report.get("oldest_onnxruntime") or {}
    if not oldest.get("version"):
        return None
    more = f"for {oldest['because'][0]}" if oldest["because"] else ""
    return _figure("ONNX Runtime", f"{oldest['version']} or newer", more)


def _left_float(layers: Sequence[Report]) -> list[dict[str, Any]]:
    """Reasons with their layers, the one with the most multiply-adds first."""
    total = sum(x["macs"] for x in layers) or 1
    left = [layer for layer in layers if layer["realised"] == "float"]
    rows: list[dict[str, Any]] = [
        {
            "reason": reason,
            "count": len(found),
            "share": sum(x["macs"] for x in found) / total,
            "layers": [{"origin": x["origin"], "op_type": x["op_type"]} for x in found[:LISTED]],
            "more": max(0, len(found) - LISTED),
        }
        for reason, found in join_reasons(left, _why_float)
    ]
    return sorted(rows, key=lambda row: (-row["share"], -row["count"], row["reason"]))


def _matrices(report: Report) -> list[dict[str, Any]]:
    """Matrices of a weight-only target, those that lost most first."""
    rows = [
        {
            "name": m["name"],
            "origin": (m["uses"] or [""])[0],
            "shape": "×".join(map(str, m["shape"])),
            "precision": m["precision"],
            "how": f"{m['algorithm']}, blocks of {m['block']}",
            "sqnr_db": m["sqnr_db"],
        }
        for m in report.get("matrices") or []
    ]
    return sorted(rows, key=lambda m: (m["sqnr_db"] is None, m["sqnr_db"] or 0.0, m["name"]))


def _why_float(layer: Report) -> str:
    if layer["requested"] == "float":
        return layer["reason"] or "no reason recorded"
    kernels = ", ".join(dict.fromkeys(layer["executed_as"])) or "nothing of its own"
    return f"asked for {layer['requested']}, executed in float as {kernels}"


def _facts(report: Report) -> list[tuple[str, list[tuple[str, str]]]]:
    machine = dict(report["machine"])
    machine["features"] = " ".join(machine.get("features") or [])
    if machine.get("memory_bytes"):
        machine["memory"] = f"{machine.pop('memory_bytes') / 1e9:.1f} GB"
    inputs = {k: v for k, v in report["inputs"].items() if not isinstance(v, dict)}
    model = report["model"]
    about = {
        "file": model["name"],
        "sha256": model["sha256"],
        "nodes": model["nodes"],
        "opset": model["opset"],
        "inputs": "; ".join(model["inputs"]),
    }
    facts = {
        "Model": about,
        "Machine": machine,
        "Versions": report["versions"],
        "What the result depends on": inputs,
        "Hashes (sha256)": report["hashes"],
    }
    # sorted as report.json is, so that a page made from a report in memory has the same bytes
    return [
        (
            title,
            [
                (str(k), str(v))
                for k, v in (rows.items() if rows is about else sorted(rows.items()))
            ],
        )
        for title, rows in facts.items()
    ]
