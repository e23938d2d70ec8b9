"""qcompile beside the quantizers that are installed, all artifacts of a model timed in one run.

    python benchmarks/versus.py                                     # models/ and what fetch.py brought
    python benchmarks/versus.py rec=rec.onnx:samples/ det=det.onnx:data.py:samples
    python benchmarks/versus.py --metric rec=eval.py:cer --peer nncf=/venv/bin/python --threads 1,2

A model is NAME=FILE.onnx:DATA with DATA as `qcompile --calibration` takes it. A fifth of the samples (4
to 16) is held out from every tool; SQNR and latency are taken on these. Each tool runs in a process of
its own, gets the same calibration files, and is timed and its memory watched from outside (with all
its child processes). ONNX Runtime's quantizers of this environment take part; others by --peer
NAME=PYTHON, the interpreter of an environment that has them. The first row of each table is float
under ONNX Runtime's default options.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from qcompile.backends.ort import open_session
from qcompile.compare import OutputComparison, compare_outputs
from qcompile.data.inputs import Feed, input_specs
from qcompile.data.sources import open_feeds
from qcompile.environment import describe_machine, describe_versions
from qcompile.ir.errors import ModelError
from qcompile.ir.load import load_model
from qcompile.measure import measure_load, measure_many
from qcompile.options import make_options
from qcompile.scores import Metric, make_metric

HERE = Path(__file__).resolve().parent
MODELS = HERE.parent / "models"
FMNIST = ("fmnist_cnn", "fmnist_dwcnn", "fmnist_vit", "fmnist_lstm")
QCOMPILE = "qcompile"
HELD = (4, 16)


@dataclass(frozen=True)
class Case:
    """A model to compile.

    Attributes:
        name: in the table.
        model: the float model.
        data: where samples come from, as --calibration takes it; None: random ones.
        metric: as --metric takes it.
    """

    name: str
    model: Path
    data: Any = None
    metric: str | None = None


@dataclass
class Row:
    """One tool on one model; what failed says so in ``fault`` and has no other numbers.

    Attributes:
        ms: threads -> median latency.
        speedup: threads -> float latency / this one.
    """

    model: str
    tool: str
    fault: str = ""
    ms: dict[int, float] = field(default_factory=dict)
    speedup: dict[int, float] = field(default_factory=dict)
    sqnr_db: float | None = None
    score: float | None = None
    megabytes: float | None = None
    compile_s: float | None = None
    peak_mb: float | None = None


def parse_case(text: str) -> Case:
    """``NAME=FILE.onnx:DATA``; a Windows path may hold a colon of its own."""
    found = re.fullmatch(r"([^=]+)=(.+?\.onnx):(.+)", text)
    if found is None:
        raise SystemExit(f"'{text}' is no NAME=FILE.onnx:DATA")
    return Case(found[1], Path(found[2]), found[3])


def fmnist_feeds() -> list[Feed]:
    """Calibration images one by one: latency is that of a single image."""
    with np.load(MODELS / "fmnist_calibration.npz") as data:
        images = data["images"][:80].astype(np.float32)[:, None] / np.float32(255)
    return [{"image": image[None]} for image in images]


def default_cases(fetched: Path) -> list[Case]:
    """The models in git, with their data; those that fetch.py brought, on random data."""
    metric = f"{HERE / 'fmnist.py'}:top1"
    cases = [Case(name, MODELS / f"{name}.onnx", fmnist_feeds, metric) for name in FMNIST]
    return cases + [Case(file.stem, file) for file in sorted(fetched.glob("*.onnx"))]


def split(case: Case, folder: Path) -> tuple[Path, list[Feed]]:
    """Calibration samples as .npz files in a folder, and the held-out ones."""
    data = case.data() if callable(case.data) else case.data
    feeds = open_feeds(data, input_specs(load_model(case.model).model))
    held = max(HELD[0], min(HELD[1], len(feeds) // 5))
    step = max(1, len(feeds) // held)
    out = {i for i in range(0, len(feeds), step) if i // step < held}
    folder.mkdir()
    kept: list[Feed] = []
    for i, feed in enumerate(feeds):
        if i in out:
            kept.append(feed)
        if i not in out or len(feeds) < 2 * HELD[0]:
            with (folder / f"{i:05d}.npz").open("wb") as file:
                np.savez(file, **feed)  # type: ignore[arg-type]
    return folder, kept


@dataclass(frozen=True)
class Ran:
    """How a process ended: exit code, its last lines, seconds, peak memory of it and its children."""

    code: int
    text: str
    seconds: float
    peak_mb: float


def run_watched(command: list[str], limit_s: float) -> Ran:
    """Run a tool; it is ended after ``limit_s``."""
    peak = 0
    start = time.perf_counter()
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as log:
        process = psutil.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        timer = threading.Timer(limit_s, _end, [process])
        timer.start()
        while process.poll() is None:
            peak = max(peak, _resident(process))
            time.sleep(0.02)
        timer.cancel()
        seconds = time.perf_counter() - start
        log.seek(0)
        text = log.read()
    return Ran(process.returncode, text.strip(), seconds, peak / 1e6)


def _end(process: psutil.Popen) -> None:
    for one in [*process.children(recursive=True), process]:
        try:
            one.kill()
        except psutil.NoSuchProcess:
            continue


def _resident(process: psutil.Popen) -> int:
    total = 0
    try:
        for one in [process, *process.children(recursive=True)]:
            total += one.memory_info().rss
    except psutil.NoSuchProcess:  # ended just now
        return total
    return total


def compile_all(
    case: Case, data: Path, work: Path, peers: dict[str, str], args: argparse.Namespace
) -> tuple[dict[str, Path], dict[str, Row]]:
    """Artifacts by tool, and a row for each tool."""
    threads = str(args.threads[0])
    own = [sys.executable, "-m", "qcompile", str(case.model), "-c", str(data), "--threads", threads]
    own += ["-o", str(work / QCOMPILE), "--quiet", "--effort", args.effort]
    if case.metric is not None:
        own += ["--metric", case.metric, "--max-drop", args.max_drop]
    if case.data is None:
        own += ["--allow-random"]
    script = str(HERE / "peer.py")
    commands = {QCOMPILE: (own, work / QCOMPILE / "model.onnx")}
    for name, python in peers.items():
        out = work / f"{name}.onnx"
        commands[name] = ([python, script, name, str(case.model), str(data), str(out)], out)
    artifacts, rows = {}, {}
    for tool, (command, out) in commands.items():
        ran = run_watched(command, args.limit)
        row = Row(case.name, tool, compile_s=ran.seconds, peak_mb=ran.peak_mb)
        if ran.code == 0 and out.is_file():
            artifacts[tool] = out
            row.megabytes = out.stat().st_size / 1e6
        elif ran.seconds >= args.limit:
            row.fault = f"not done after {args.limit:.0f} s"
        else:
            lines = ran.text.splitlines() or ["no output"]
            told = next((n for n in lines if n.startswith(("NOT ", "error:"))), lines[-1])
            row.fault = told[:160]
        rows[tool] = row
    return artifacts, rows


def metric_of(case: Case) -> Metric | None:
    """The case's metric, loaded."""
    specs = input_specs(load_model(case.model).model)
    options = make_options(metric=case.metric)
    return make_metric(options, specs, open_feeds(None, specs), calibrated=False)


def judge_all(
    case: Case, held: list[Feed], artifacts: dict[str, Path], rows: dict[str, Row]
) -> dict[str, Path]:
    """Open each model, compare its outputs with float's, score it; returns those that can be run."""
    metric = metric_of(case) if case.metric is not None else None
    reference: list[dict[str, Any]] = []
    able = {}
    for tool, path in artifacts.items():
        row = rows[tool]
        try:
            errors = [e for e in measure_load(path, held[:1]).errors if e]
            if errors:
                raise ModelError(errors[0])
            session = open_session(path)
            outputs = [session.run(feed) for feed in held]
        except ModelError as e:
            row.fault = f"invalid: {e}"[:160]
            continue
        reference = reference or outputs
        compared: dict[str, OutputComparison] = {}
        for i, (wanted, found) in enumerate(zip(reference, outputs, strict=True)):
            compare_outputs(compared, str(i), None, wanted, found)
        results = [c.result() for c in compared.values()]
        if tool != "float":
            row.sqnr_db = min(
                (r.sqnr_db for r in results if r.sqnr_db is not None and not r.zero), default=None
            )
        if metric is not None:
            row.score = float(metric.fn(session.run))
        able[tool] = path
    return able


def bench(case: Case, peers: dict[str, str], args: argparse.Namespace) -> list[Row]:
    """All tools on one model."""
    with tempfile.TemporaryDirectory(prefix="versus-", ignore_cleanup_errors=True) as name:
        work = Path(name)
        data, held = split(case, work / "calibration")
        artifacts, rows = compile_all(case, data, work, peers, args)
        size = case.model.stat().st_size / 1e6
        rows = {"float": Row(case.name, "float", megabytes=size), **rows}
        able = judge_all(case, held, {"float": case.model, **artifacts}, rows)
        for threads in args.threads:
            timed = measure_many(
                able, held, threads=threads, budget_s=args.seconds * len(able), half_width=0.01
            )
            for tool, one in timed.models.items():
                rows[tool].ms[threads] = one.p50_ms
                rows[tool].speedup[threads] = 1.0 if one.speedup is None else one.speedup.value
    return list(rows.values())


def table(rows: list[Row], threads: list[int]) -> str:
    """Markdown."""
    heads = ["model", "tool"]
    heads += [f"{t} thread{'s' * (t > 1)}" for t in threads]
    heads += ["SQNR dB", "score", "MB", "compile s", "peak MB"]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for row in rows:
        if row.fault:
            fault = row.fault.replace("|", "/")
            cells = [row.model, row.tool, fault, *[""] * (len(heads) - 5)]
            cells += [_figure(row.compile_s, 1), _figure(row.peak_mb, 0)]
        else:
            cells = [row.model, row.tool]
            cells += [f"{row.ms[t]:.3g} ms, {row.speedup[t]:.2f}x" for t in threads]
            cells += [_figure(row.sqnr_db, 1), _figure(row.score, 4), _figure(row.megabytes, 2)]
            cells += [_figure(row.compile_s, 1), _figure(row.peak_mb, 0)]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _figure(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def peers_of(given: list[str]) -> dict[str, str]:
    """Peer -> interpreter: those of this environment, then those given."""
    asked = subprocess.run(
        [sys.executable, str(HERE / "peer.py"), "--installed"],
        capture_output=True,
        text=True,
        check=True,
    )
    found = dict.fromkeys(asked.stdout.split(), sys.executable)
    for text in given:
        name, _, python = text.partition("=")
        if not python:
            raise SystemExit(f"--peer {text} is no NAME=PYTHON")
        found[name] = python
    return found


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="*", metavar="NAME=FILE.onnx:DATA")
    parser.add_argument("--fetched", type=Path, default=Path("fetched"), help="[./fetched]")
    parser.add_argument("--metric", action="append", default=[], metavar="NAME=FILE.py:FUNCTION")
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=PYTHON")
    parser.add_argument("--without", action="append", default=[], metavar="PEER")
    parser.add_argument("--threads", default="1", help="for example 1,2 [1]")
    parser.add_argument("--effort", default="default", help="of qcompile [default]")
    parser.add_argument(
        "--max-drop", default="2%", help="of qcompile where there is a metric [2%%]"
    )
    parser.add_argument("--seconds", type=float, default=5.0, help="of timing a model [5]")
    parser.add_argument("--limit", type=float, default=600.0, help="seconds for a tool [600]")
    parser.add_argument("--json", type=Path, help="write the rows, the machine and the versions")
    args = parser.parse_args()
    args.threads = [int(t) for t in args.threads.split(",")]
    return args


def main() -> int:
    """Print a table for each model as it is done."""
    args = arguments()
    cases = [parse_case(text) for text in args.models] or default_cases(args.fetched)
    metrics = dict(text.split("=", 1) for text in args.metric)
    peers = {k: v for k, v in peers_of(args.peer).items() if k not in args.without}
    rows: list[Row] = []
    for plain in cases:
        case = replace(plain, metric=metrics.get(plain.name, plain.metric))
        found = bench(case, peers, args)
        rows += found
        print(table(found, args.threads), end="\n\n", flush=True)
        if args.json is not None:
            content = {
                "rows": [asdict(row) for row in rows],
                "machine": describe_machine(),
                "versions": describe_versions(),
            }
            text = json.dumps(content, indent=1) + "\n"
            args.json.write_text(text, encoding="utf-8", newline="\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
