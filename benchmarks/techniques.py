"""What each technique for accuracy gives: alone, all together, none, and as the default chooses.

    python benchmarks/techniques.py MODEL.onnx ... --data DIR [--metric FILE.py:FUNCTION]
        [--only fold-scales,refit] [--logits] [--json out.json]

DIR holds calibration samples, or a folder of them for each model by its name. The default compile
chooses the plan; all other rows follow that plan, so that they differ in nothing but the techniques.
SQNR and score come from the gate, on samples that nothing was fitted to. The metric's limits are left
open: every row is delivered, however poor. "float moves" is what scaling of channels does to the float
model's outputs, relative to their peak. --logits judges what a last Softmax or Sigmoid reads: where all
samples are decided, its output is equal whatever is done.
"""

from __future__ import annotations

import argparse
import json
import re
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import onnx_ir as oir

import qcompile
from qcompile.environment import describe_machine, describe_versions
from qcompile.techniques import ALL

SHORT = {"gate_time": "1s", "min_speedup": 0.01}
SCALING = ("fold-scales", "smooth-quant", "smooth-branches")
SQUASHING = ("Softmax", "Sigmoid", "LogSoftmax")


@dataclass
class Row:
    """One compile; ``stages`` are seconds."""

    model: str
    techniques: str
    sqnr_db: float | None = None
    score: float | None = None
    float_score: float | None = None
    compile_s: float | None = None
    stages: dict[str, float] | None = None
    scaled: str = ""
    fault: str = ""


def compile_row(
    model: Path, data: Path, name: str, out: Path, given: dict[str, Any]
) -> tuple[Row, Path]:
    """Compile once and read the report."""
    row = Row(model.stem, name)
    start = time.perf_counter()
    try:
        result = qcompile.compile(model, calibration=str(data), output=out, force=True, **given)
    except qcompile.QCompileError as e:
        row.fault = str(e)[:120]
        return row, out
    row.compile_s = time.perf_counter() - start
    report = result.report.data
    row.stages = {stage["name"]: stage["seconds"] for stage in report["stages"]}
    row.sqnr_db = result.report.sqnr_db
    score = report["gate"].get("score")
    if score:
        row.score, row.float_score = score["artifact_score"], score["float_score"]
    row.scaled = ", ".join(scaled(report["passes"]))
    return row, out


def scaled(passes: list[dict[str, Any]]) -> Iterator[str]:
    """What became of channels that were scaled, for each technique that did it."""
    for one in passes:
        if one["name"] in SCALING and one["notes"] and one["notes"][0]["where"] == "":
            text = one["notes"][0]["text"]
            drift = re.search(r"differ by (\S+)", text)
            if drift is not None:
                yield f"{one['changed']} scaled, float moves {drift.group(1)}"
            else:
                yield f"{one['name']} undone"


def rows_of(
    model: Path, data: Path, only: list[str], given: dict[str, Any], work: Path
) -> Iterator[Row]:
    """The default first, whose plan the others follow."""
    row, out = compile_row(model, data, "default", work / "default", given)
    yield row
    if row.fault:
        return
    fixed = {**given, "plan": str(out / "plan.json")}
    sets = {"none": "none", **{name: name for name in only}, "all": "all"}
    for name, techniques in sets.items():
        yield compile_row(model, data, name, work / name, {**fixed, "techniques": techniques})[0]


def without_last(model: Path, out: Path) -> Path:
    """A copy of a model that gives out what its last Softmax or Sigmoid reads."""
    loaded = oir.load(model)
    found = 0
    for index, output in enumerate(loaded.graph.outputs):
        node = output.producer()
        if node is None or node.op_type not in SQUASHING or output.uses():
            continue
        read = node.inputs[0]
        if read is not None:
            read.type, read.shape = output.type, output.shape
            loaded.graph.outputs[index] = read
            loaded.graph.remove(node, safe=True)
            found += 1
    if not found:
        raise SystemExit(f"--logits: no output of '{model}' comes from {', '.join(SQUASHING)}")
    oir.save(loaded, out)
    return out


def table(rows: list[Row]) -> str:
    """Markdown."""
    lines = ["| model | techniques | SQNR dB | score (float) | compile s | scaling |"]
    lines.append("|---|---|---|---|---|---|")
    for row in rows:
        if row.fault:
            lines.append(f"| {row.model} | {row.techniques} | {row.fault} | | | |")
            continue
        score = "" if row.score is None else f"{row.score:.4f} ({row.float_score:.4f})"
        sqnr = "" if row.sqnr_db is None else f"{row.sqnr_db:.1f}"
        lines.append(
            f"| {row.model} | {row.techniques} | {sqnr} | {score} | {row.compile_s:.0f} | {row.scaled} |"
        )
    return "\n".join(lines)


def main() -> int:
    """Print a table for each model as it is done."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="+", type=Path, metavar="MODEL.onnx")
    parser.add_argument("--data", type=Path, required=True, help="samples, or NAME/ with them")
    parser.add_argument("--metric", help="FILE.py:FUNCTION")
    parser.add_argument("--only", help="techniques to try alone, with commas [all of them]")
    parser.add_argument(
        "--logits", action="store_true", help="judge what a last Softmax or Sigmoid reads"
    )
    parser.add_argument("--threads", type=int, default=1, help="[1]")
    parser.add_argument("--json", type=Path, help="write the rows, the machine and the versions")
    args = parser.parse_args()
    given: dict[str, Any] = {**SHORT, "threads": args.threads}
    given |= {"min_sqnr": -200.0} if args.metric is None else {"metric": args.metric}
    if args.metric is not None:
        given["max_drop"] = "100%"
    only = list(ALL) if args.only is None else [n for n in args.only.split(",") if n]
    done: list[Row] = []
    for model in args.models:
        data = args.data / model.stem if (args.data / model.stem).is_dir() else args.data
        with tempfile.TemporaryDirectory(prefix="techniques-") as folder:
            source = without_last(model, Path(folder) / model.name) if args.logits else model
            rows = list(rows_of(source, data, only, given, Path(folder)))
        print(table(rows), end="\n\n", flush=True)
        done += rows
        if args.json is not None:
            content = {
                "rows": [asdict(row) for row in done],
                "machine": describe_machine(),
                "versions": describe_versions(),
            }
            text = json.dumps(content, indent=1) + "\n"
            args.json.write_text(text, encoding="utf-8", newline="\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
