"""Engines of TensorRT for RTX, built without a GPU, from qcompile's Q/DQ model and from other tools'.

    python benchmarks/engines.py det=det.onnx:calibration/:test/ --peer modelopt-trt=/venv/bin/python
    python benchmarks/engines.py vit=vit.onnx:cal/:test/ --target tensorrt-fp8 --capability SM89
    python benchmarks/engines.py --table runs/*.json        # one table of what --json wrote

A model is NAME=FILE.onnx:CALIBRATION:TEST, both folders of .npz feeds. Every tool gets the same
calibration files. For each GPU generation the table shows how many Conv, Gemm and MatMul the tool asked
8 bits (or fewer) of, how many of them the engine multiplies so, and of how many kernels it consists;
"mha" counts attention fused into one kernel. SQNR is that of the same file in ONNX Runtime, as written,
against the float model on the test feeds. Nothing is executed on a GPU.

The interpreter that runs this needs tensorrt-rtx; --peer NAME=PYTHON names one that has the peer (see
peer.py: ort-trt, modelopt-trt, half-naive).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as oir

import qcompile
from qcompile.backends.ort import AS_WRITTEN, open_session, runtime_version
from qcompile.backends.trt import build_engine
from qcompile.backends.trt_layers import realised_precision
from qcompile.backends.trt_library import need_library
from qcompile.compare import OutputComparison, compare_outputs
from qcompile.ir.errors import QCompileError
from qcompile.profiles import shape_profile
from qcompile.subject import runnable_form

HERE = Path(__file__).resolve().parent
CAPABILITIES = ("SM80", "SM86", "SM89", "SM120")
PRODUCTS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
MOVERS = ("Cast", "Transpose", "Reshape", "Squeeze", "Unsqueeze", "Split", "Slice", "Identity")
FEW_BITS = ("int8", "fp8", "nvfp4", "int4-weights", "int8-weights")
OURS = "qcompile"


@dataclass
class Built:
    """An engine, or why there is none."""

    requested: int = 0
    realised: int = 0
    kernels: int = 0
    mha: int = 0
    missed: list[str] = field(default_factory=list)
    error: str = ""


@dataclass
class Row:
    """What one tool made of one model."""

    model: str
    tool: str
    sqnr_db: float | None = None
    error: str = ""
    engines: dict[str, Built] = field(default_factory=dict)


def asks_few_bits(node: oir.Node) -> bool:
    """Whether the right side of a product comes out of a DequantizeLinear: weights alone may be few bits."""

    def dequantized(value: oir.Value | None) -> bool:
        producer = None if value is None else value.producer()
        while producer is not None and producer.op_type in MOVERS:
            value = producer.inputs[0]
            producer = None if value is None else value.producer()
        return producer is not None and producer.op_type == "DequantizeLinear"

    return dequantized(node.inputs[1])


def inspect(path: Path, capability: str, feeds: Path) -> Built:
    """Build one engine in this process."""
    model = oir.load(path)
    asked = [n for n in model.graph if n.op_type in PRODUCTS and asks_few_bits(n)]
    shapes = [{k: v.shape for k, v in feed.items()} for feed in read_feeds(feeds)]
    try:
        built = build_engine(path, need_library(True), shape_profile(shapes), capability)
    except QCompileError as e:
        return Built(requested=len(asked), error=str(e)[:300])
    found = Built(requested=len(asked))
    for node in asked:
        precision = realised_precision(built.layers, node.name or "")
        if precision in FEW_BITS:
            found.realised += 1
        else:
            found.missed.append(f"{node.name} ({node.op_type}): {precision or 'fused away'}")
    kernels = [k for k in built.layers if k.kind not in ("signal", "wait")]
    found.kernels = len(kernels)
    found.mha = sum("mha" in k.name for k in kernels)
    return found


def engine(path: Path, capability: str, feeds: Path) -> Built:
    """The same in a process of its own: a compiler that crashes is a finding."""
    command = [sys.executable, __file__, "--inspect", str(path), capability, str(feeds)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = [line for line in run.stdout.splitlines() if line.startswith("{")]
    if run.returncode != 0 or not lines:
        last = (run.stderr.strip() or f"exit code {run.returncode}").splitlines()[-1]
        return Built(error=f"the builder failed: {last[:200]}")
    return Built(**json.loads(lines[-1]))


def read_feeds(folder: Path) -> list[dict[str, Any]]:
    """Feeds of a folder, in order."""
    feeds = []
    for path in sorted(folder.glob("*.npz")):
        with np.load(path) as stored:
            feeds.append({name: stored[name] for name in stored.files})
    return feeds


def accuracy(model: Path, made: Path, feeds: list[dict[str, Any]]) -> float | None:
    """Least SQNR of the float outputs; -inf where one is NaN or infinite and float's is not."""
    config = {**AS_WRITTEN}
    base, other = (
        open_session(model),
        open_session(runnable_form(made), config=config, optimize=False),
    )
    compared: dict[str, OutputComparison] = {}
    for i, feed in enumerate(feeds):
        compare_outputs(compared, str(i), None, base.run(feed), other.run(feed))
    results = [c.result() for c in compared.values()]
    if any(r.nonfinite for r in results):
        return float("-inf")
    return min((r.sqnr_db for r in results if r.sqnr_db is not None), default=None)


def made_by_us(out: Path) -> Path | None:
    """qcompile's Q/DQ model in the folder of an artifact, handed over or not."""
    names = (out / "model.qdq.onnx", out / "rejected" / "model.qdq.onnx")
    return next((p for p in names if p.is_file()), None)


def make_ours(model: Path, calibration: Path, out: Path, device: str, **asked: str) -> Path:
    """qcompile's Q/DQ model."""
    kept = made_by_us(out)
    if kept is not None:
        return kept
    result = qcompile.compile(
        model, device=device, calibration=str(calibration), output=out, threads=1, force=True, **asked
    )  # fmt: skip
    found = made_by_us(out)
    if found is None:
        raise QCompileError(result.headlines()[0])
    return found


def make_peer(peer: str, python: str, model: Path, calibration: Path, out: Path) -> Path:
    """Another tool's model."""
    if out.is_file():
        return out
    command = [python, str(HERE / "peer.py"), peer, str(model), str(calibration), str(out)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    if run.returncode != 0 or not out.is_file():
        last = (run.stderr.strip() or run.stdout.strip() or "no message").splitlines()[-1]
        raise QCompileError(last[:200])
    return out


def table(rows: list[Row], capabilities: list[str]) -> str:
    """Markdown: realised/requested and kernels for each generation."""
    lines = [
        "| model | tool | SQNR | " + " | ".join(capabilities) + " |",
        "|---|---|---|" + "---|" * len(capabilities),
    ]
    for row in rows:
        db = "" if row.sqnr_db is None else f"{row.sqnr_db:.1f} dB"
        cells = []
        for capability in capabilities:
            built = row.engines.get(capability)
            if built is None:
                cells.append(row.error[:80])
            elif built.error:
                cells.append(f"refused: {built.error[:80]}")
            else:
                mha = f", {built.mha} mha" if built.mha else ""
                cells.append(f"{built.realised}/{built.requested} in {built.kernels}{mha}")
        lines.append(f"| {row.model} | {row.tool} | {db} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def read_rows(paths: list[str]) -> list[Row]:
    """What --json wrote, by model, qcompile first."""
    rows = []
    for path in paths:
        for found in json.loads(Path(path).read_text(encoding="utf-8")):
            engines = {name: Built(**built) for name, built in found.pop("engines").items()}
            rows.append(Row(**found, engines=engines))
    return sorted(rows, key=lambda row: (row.model, row.tool != OURS, row.tool))


def main() -> int:
    """Build everything and print the table."""
    if sys.argv[1:2] == ["--table"]:
        print(table(read_rows(sys.argv[2:]), list(CAPABILITIES)))
        return 0
    if sys.argv[1:2] == ["--inspect"]:
        path, capability, feeds = sys.argv[2:5]
        print(json.dumps(asdict(inspect(Path(path), capability, Path(feeds)))))
        return 0
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("models", nargs="+", help="NAME=FILE.onnx:CALIBRATION:TEST")
    parser.add_argument("--peer", action="append", default=[], help="NAME=PYTHON")
    parser.add_argument("--only-peers", action="store_true", help="make none with qcompile")
    parser.add_argument("--target", default="tensorrt-int8")
    parser.add_argument("--effort", default="default", help="of qcompile")
    parser.add_argument("--prefer", default="balance", help="of qcompile")
    parser.add_argument("--capability", nargs="+", default=list(CAPABILITIES))
    parser.add_argument(
        "--keep", type=Path, help="folder of the models; those there are used again"
    )
    parser.add_argument("--json", type=Path, dest="result")
    args = parser.parse_args()
    library = need_library(True)
    device = args.capability[0].lower()
    asked = {"target": args.target, "effort": args.effort, "prefer": args.prefer}
    tools = [] if args.only_peers else [(OURS, "")]
    tools += [(name, python) for name, _, python in (p.partition("=") for p in args.peer)]
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.keep or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        for text in args.models:
            name, _, rest = text.partition("=")
            model, calibration, test = (Path(p) for p in rest.split(":"))
            for tool, python in tools:
                row = Row(name, tool)
                rows.append(row)
                out = folder / f"{name}.{tool}"
                try:
                    if tool == OURS:
                        made = make_ours(model, calibration, out, device, **asked)
                    else:
                        made = make_peer(tool, python, model, calibration, Path(f"{out}.onnx"))
                    row.sqnr_db = accuracy(model, made, read_feeds(test))
                except QCompileError as e:
                    row.error = str(e)
                    print(f"{name} {tool}: {e}", file=sys.stderr)
                    if not (folder / f"{name}.{tool}.onnx").is_file():
                        continue
                    made = folder / f"{name}.{tool}.onnx"
                for capability in args.capability:
                    row.engines[capability] = engine(made, capability, calibration)
                print(table([row], args.capability).splitlines()[-1], file=sys.stderr, flush=True)
                if args.result:
                    args.result.write_text(json.dumps([asdict(r) for r in rows], indent=1) + "\n")
    print(f"{library.name} {library.version}, ONNX Runtime {runtime_version()}\n")
    print(table(rows, args.capability))
    return 0


if __name__ == "__main__":
    sys.exit(main())
