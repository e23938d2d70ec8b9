"""What happened, as data: report.json, and the text that a run ends with."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qcompile.ir.manager import PassRecord
from qcompile.ir.notes import Note
from qcompile.ir.plan import FLOAT
from qcompile.reasons import join_reasons
from qcompile.verdict import to_jsonable

__all__ = ["REPORT_VERSION", "CompileReport", "notes_as_data", "passes_as_data"]

REPORT_VERSION = 1


MANY = 8
"""Outputs that are listed one by one; a decoder's cache has two for each block."""


@dataclass(frozen=True)
class CompileReport:
    """Everything about one compile.

    Attributes:
        data: JSON-serializable; the schema is ``report.schema.json`` beside this file.
    """

    data: Mapping[str, Any]

    @property
    def verdict(self) -> str:
        """One of "delivered", "not delivered", "not measured", "inconclusive"."""
        return str(self.data["verdict"])

    @property
    def speedup(self) -> float | None:
        """Float latency / artifact latency; None where not measured."""
        found = self.data["gate"]["speedup"]
        return None if found is None else float(found)

    @property
    def sqnr_db(self) -> float | None:
        """Least SQNR of all float outputs on held-back samples, in dB."""
        found = self.data["gate"]["sqnr_db"]
        return None if found is None else float(found)

    @property
    def layers(self) -> Sequence[Mapping[str, Any]]:
        """Every layer: origin, op_type, requested and realised precision, reason, costs."""
        found: Sequence[Mapping[str, Any]] = self.data["layers"]
        return found

    @property
    def integer_mac_share(self) -> float | None:
        """Share of the MACs of Conv, MatMul, Gemm and LSTM that runs in integers."""
        found = self.data["integer_mac_share"]
        return None if found is None else float(found)

    def to_json(self) -> str:
        """Deterministic text of the data."""
        return (
            json.dumps(to_jsonable(self.data), indent=1, sort_keys=True, ensure_ascii=False) + "\n"
        )

    def headlines(self) -> list[str]:
        """The last lines of a run: verdict, layers, what to do next."""
        lines = [str(self.data["headline"]), self._layer_line()]
        lines += [f"warning: {w}" for w in self.data["warnings"]]
        if self.data.get("next"):
            lines.append(f"next: {self.data['next']}")
        return lines

    def _runtime_line(self) -> str:
        oldest = self.data.get("oldest_onnxruntime") or {}
        if not oldest.get("version"):
            return ""
        return f"opens with ONNX Runtime {oldest['version']} or newer ({oldest['because'][0]})"

    def _speed_lines(self) -> list[str]:
        """Three speeds: what was given, the same fused, and the artifact."""
        timed = (self.data["gate"].get("speed") or {}).get("models", {})
        if "fused" not in timed:
            return []
        words = {"float": "float", "fused": "float, fused", "artifact": "artifact"}
        parts = []
        for key, word in words.items():
            ratio = timed[key]["speedup"]
            tail = "" if ratio is None else f" ({ratio['value']:.2f}x)"
            parts.append(f"{word} {timed[key]['p50_ms']:.3g} ms{tail}")
        return [f"  speed: {', '.join(parts)}"]

    def _cost_lines(self) -> list[str]:
        costs = self.data["plan"].get("costs")
        if not costs:
            return []
        return [f"    {costs['text']}", *(f"      {text}" for text in costs["differences"])]

    def _layer_line(self) -> str:
        layers = [layer for layer in self.layers if layer["macs"] or layer["compute"]]
        done = [layer for layer in layers if layer["realised"] != FLOAT]
        line = f"{len(done)} of {len(layers)} compute layers integer"
        share = self.integer_mac_share
        if share is not None:
            line += f" ({share:.0%} of the multiply-adds)"
        left = [layer for layer in layers if layer["realised"] == FLOAT]
        joined = join_reasons(left, lambda layer: str(layer["reason"]))
        joined.sort(key=lambda one: -len(one[1]))
        reasons = [f"{len(members)} float: {reason}" for reason, members in joined[:3]]
        if joined[3:]:
            reasons.append(f"{sum(len(members) for _, members in joined[3:])} for other reasons")
        return "; ".join([line, *reasons])

    def timing_lines(self) -> list[str]:
        """Where the time went within stages and passes, the longest first."""
        stages = self.data["stages"]
        parts = [(f"{s['name']}: {p['name']}", p) for s in stages for p in s.get("parts", [])]
        passes = [(f"pass {p['name']}", p) for p in self.data["passes"]]
        rows = sorted(((one["seconds"], name) for name, one in (*parts, *passes)), reverse=True)
        return [f"  {seconds:7.2f} s  {name}" for seconds, name in rows[:12] if seconds >= 0.01]

    def _output_lines(self) -> list[str]:
        """The outputs' errors; of many, the first and the worst, and what the others lie between."""
        outputs = [o for o in self.data["gate"]["outputs"] if o["sqnr_db"] is not None]
        shown = outputs
        if len(outputs) > MANY:
            worst = min(outputs, key=lambda o: o["sqnr_db"])
            shown = [outputs[0]] + ([] if worst is outputs[0] else [worst])
        lines = []
        for output in shown:
            lines.append(
                f"  output {output['name']}: SQNR {output['sqnr_db']:.1f} dB, "
                f"worst sample {output['worst_sqnr_db']:.1f} dB ({output['worst_sample']})"
            )
            lines += [
                f"    {group['text']}: SQNR {group['sqnr_db']:.1f} dB, peak {group['peak']:.3g}"
                for group in output.get("groups") or []
            ]
        others = [o["sqnr_db"] for o in outputs if o not in shown]
        if others:
            low, high = min(others), max(others)
            lines.append(f"  {len(others)} other outputs: SQNR {low:.1f} to {high:.1f} dB")
        return lines

    def summary(self) -> str:
        """The text of a run: stages, numbers, what was left alone, headlines."""
        data = self.data
        lines = [
            f"{data['model']['name']} -> {data['target']['name']} on {data['target']['device']}"
        ]
        lines.append(f"  calibrated on {data['calibration']['description']}")
        for text in data["calibration"]["findings"]:
            lines.append(f"    {text}")
        changed = [f"{p['name']} {p['changed']}" for p in data["passes"] if p["changed"]]
        lines.append(f"  passes: {', '.join(changed) or 'nothing to do'}")
        lines.append(f"  plan: {data['plan']['how']}")
        lines += self._cost_lines()
        for row in data["plan"]["candidates"]:
            lines.append(f"    {row['text']}")
        lines += self._output_lines()
        lines += self._speed_lines()
        stages = ", ".join(f"{s['name']} {s['seconds']:.1f} s" for s in data["stages"])
        lines.append(f"  time: {stages}; {sum(s['seconds'] for s in data['stages']):.1f} s in all")
        if runtime := self._runtime_line():
            lines.append(f"  {runtime}")
        if data["output"]:
            lines.append(f"  wrote {data['output']}/")
        return "\n".join([*lines, *self.headlines()])


def notes_as_data(notes: Sequence[Note]) -> list[dict[str, Any]]:
    """Notes as JSON has them."""
    return [{"where": n.where, "text": n.text, "changed": n.changed} for n in notes]


def passes_as_data(records: Sequence[PassRecord]) -> list[dict[str, Any]]:
    """The pass log as JSON has it; seconds to the millisecond."""
    return [
        {
            "name": r.name,
            "changed": r.changed,
            "seconds": round(r.seconds, 3),
            "notes": notes_as_data(r.notes),
        }
        for r in records
    ]
