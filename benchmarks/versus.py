"""qcompile beside the quantizers that are installed, all artifacts of a model timed in one run.

    python benchmarks/versus.py                                     # models/ and what fetch.py brought
    python benchmarks/versus.py --models rec.onnx=samples/=eval.py:cer det.onnx=data.py:samples
    python benchmarks/versus.py --peer nncf=/nncf/bin/python --peer aimet=/aimet/bin/python \\
        --threads 1,2 --json rows.json --markdown tables.md

DATA is what `qcompile --calibration` takes, METRIC what `--metric` takes. A fifth of the samples (4 to
16) is held out from every tool; SQNR and latency are taken on these. Each tool runs in a process of its
own, gets the same calibration files, and is timed and its memory watched from outside (with all its
child processes). Peers of this environment take part (see peer.py); others by --peer NAME=PYTHON, the
interpreter of an environment that has them, where NAME is a peer or a tool with several (ort, onnxsim).
A tool that fails is a row that says why. The first row of each model is float under ONNX Runtime's
default options.
"""

from __future__ import annotations

import argparse
import datetime
import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from peer import PEERS
from versus_cases import Case, copy_model, default_cases, parse_cases, split
from versus_tables import (
    FLOAT,
    QCOMPILE,
    Row,
    stages_table,
    summary_table,
    tools_table,
    versions_text,
)
from watched import TOLD, clean_environment, run_watched

from qcompile.backends.ort import open_session
from qcompile.compare import OutputComparison, compare_outputs
from qcompile.data.inputs import Feed, input_specs
from qcompile.data.sources import open_feeds
from qcompile.enough import Enough
from qcompile.environment import describe_machine, describe_versions
from qcompile.ir.errors import ModelError, QCompileError
from qcompile.ir.load import load_model
from qcompile.limits import Limits, compare_scores, scores
from qcompile.measure import measure_load, measure_many
from qcompile.options import make_options
from qcompile.scores import Metric, make_metric
from qcompile.sizes import model_bytes

HERE = Path(__file__).resolve().parent


def compile_all(
    case: Case, data: Path, work: Path, peers: dict[str, str], args: argparse.Namespace
) -> tuple[dict[str, Path], dict[str, Row]]:
    """Artifacts by tool, and a row for each tool."""
    ours = work / QCOMPILE
    own = [sys.executable, "-m", "qcompile", str(case.model), "-c", str(data), "-o", str(ours)]
    own += ["--threads", str(args.threads[0]), "--quiet", "--effort", args.effort]
    if case.metric is not None:
        own += ["--metric", case.metric, "--max-drop", args.max_drop]
    if case.data is None:
        own += ["--allow-random"]
    script = str(HERE / "peer.py")
    artifacts, rows = {}, {}
    for tool in (QCOMPILE, *peers):
        log = work / f"{tool}.log"
        if tool == QCOMPILE:
            out = ours / "model.onnx"
            ran = run_watched(own, args.limit, log)
        else:  # in a folder of its own: some write weights beside their output, or reports where they run
            folder = work / tool
            out = folder / "out" / "model.onnx"
            out.parent.mkdir(parents=True)
            model = copy_model(case.model, folder)
            command = [peers[tool], script, tool, str(model), str(data), str(out)]
            ran = run_watched(command, args.limit, log, folder)
        row = Row(case.name, tool, compile_s=ran.seconds, peak_mb=ran.peak_mb)
        row.quantized = tool == QCOMPILE or not PEERS[tool].is_float
        if ran.code == 0 and out.is_file():
            artifacts[tool] = out
            row.megabytes = (model_bytes(out) or 0) / 1e6
        else:
            row.fault = ran.fault()
        rows[tool] = row
    if QCOMPILE in artifacts:
        report = json.loads((ours / "report.json").read_text(encoding="utf-8"))
        rows[QCOMPILE].stages = {s["name"]: s["seconds"] for s in report["stages"]}
        rows[QCOMPILE].integer_share = report["integer_mac_share"]
    return artifacts, rows


def metric_of(case: Case) -> Metric | None:
    """The case's metric, loaded."""
    specs = input_specs(load_model(case.model).model)
    options = make_options(metric=case.metric)
    return make_metric(options, specs, open_feeds(None, specs), calibrated=False)


def worst_score(metric: Metric, run: Callable[[Feed], Any]) -> float:
    """The score; of slices the worst."""
    return (max if metric.lower_is_better else min)(scores(metric, run).values())


def judge_all(
    case: Case, held: list[Feed], artifacts: dict[str, Path], rows: dict[str, Row]
) -> dict[str, Path]:
    """Open each model, compare its outputs with float's, score it; returns those that can be run.

    Raises:
        ModelError: the float model itself cannot be run or scored.
    """
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
            if tool == FLOAT:
                raise
            said = re.sub(r"^ONNX Runtime \S+ refuses it: ", "", first_line(e))
            row.fault = f"refused by ONNX Runtime: {said}"[:TOLD]
            continue
        reference = reference or outputs
        missing = set(reference[0]) - set(outputs[0])
        if missing:
            row.fault = f"invalid: the outputs {', '.join(sorted(missing))} are gone"[:TOLD]
            continue
        compared: dict[str, OutputComparison] = {}
        for i, (wanted, found) in enumerate(zip(reference, outputs, strict=True)):
            compare_outputs(compared, str(i), None, wanted, found)
        results = [c.result() for c in compared.values()]
        if tool != FLOAT:
            row.sqnr_db = min(
                (r.sqnr_db for r in results if r.sqnr_db is not None and not r.zero), default=None
            )
        if metric is not None:
            try:
                row.score = worst_score(metric, session.run)
            except Exception as e:
                if tool == FLOAT:
                    raise ModelError(f"metric {metric.name}: {first_line(e)}") from e
                row.fault = f"metric: {type(e).__name__}: {first_line(e)}"[:TOLD]
                continue
        able[tool] = path
    return able


def first_line(error: Exception) -> str:
    """Of its message."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "no message")


def mark_kept(case: Case, rows: dict[str, Row], max_drop: str) -> None:
    """Which artifacts are as accurate as was asked of qcompile, or without a metric as it is."""
    base, ours = rows[FLOAT], rows.get(QCOMPILE)
    metric = metric_of(case) if case.metric is not None else None
    limits = Limits(
        max_drop=make_options(metric=case.metric, max_drop=max_drop).max_drop if metric else None
    )
    for row in rows.values():
        if row.fault or row is base:
            continue
        if metric is not None and base.score is not None and row.score is not None:
            judged = compare_scores(metric, "", base.score, row.score, limits)
            row.keeps = judged.drop <= judged.allowed
        elif ours is not None and ours.sqnr_db is not None and row.sqnr_db is not None:
            row.keeps = row.sqnr_db >= ours.sqnr_db


def bench(case: Case, peers: dict[str, str], args: argparse.Namespace) -> list[Row]:
    """All tools on one model."""
    with ExitStack() as stack:
        if args.keep is not None:
            work = args.keep.resolve() / case.name.replace("/", "-")
            work.mkdir(parents=True)
        else:
            folder = tempfile.TemporaryDirectory(prefix="versus-", ignore_cleanup_errors=True)
            work = Path(stack.enter_context(folder))
        data, held = split(case, work / "calibration")
        size = model_bytes(case.model)
        rows = {FLOAT: Row(case.name, FLOAT, quantized=False)}
        rows[FLOAT].megabytes = None if size is None else size / 1e6
        judge_all(case, held, {FLOAT: case.model}, rows)  # before minutes are spent on it
        artifacts, made = compile_all(case, data, work, peers, args)
        rows |= made
        able = judge_all(case, held, {FLOAT: case.model, **artifacts}, rows)
        mark_kept(case, rows, args.max_drop)
        for threads in args.threads:
            timed = measure_many(
                able,
                held,
                threads=threads,
                budget_s=args.seconds * len(able),
                enough=Enough(half_width=0.01),
            )
            for tool, one in timed.models.items():
                rows[tool].ms[threads] = one.p50_ms
                rows[tool].speedup[threads] = 1.0 if one.speedup is None else one.speedup.value
    return list(rows.values())


@dataclass(frozen=True)
class Found:
    """A peer that can take part: the interpreter that has it, and the versions there."""

    python: str
    version: str


def ask(python: str) -> dict[str, str]:
    """The peers that an interpreter has, with versions."""
    clean = clean_environment(python)
    command = [python, str(HERE / "peer.py"), "--installed"]
    try:
        asked = subprocess.run(command, capture_output=True, text=True, check=True, env=clean)
    except (OSError, subprocess.CalledProcessError) as e:
        said = (getattr(e, "stderr", "") or str(e)).strip().splitlines()
        raise SystemExit(f"--peer: '{python}' cannot run peer.py: {said[-1]}") from e
    found: dict[str, str] = json.loads(asked.stdout)
    return found


def peers_of(given: Sequence[str], without: Sequence[str] = ()) -> dict[str, Found]:
    """Peers in the order of the table: those of this environment, then those given in their place."""
    cpu = {name: peer for name, peer in PEERS.items() if not peer.engines}
    known = sorted({*cpu, *(peer.tool for peer in cpu.values())})
    pythons: dict[str, str] = {}
    for text in given:
        name, _, python = text.partition("=")
        if not python:
            raise SystemExit(f"--peer {text} is no NAME=PYTHON")
        if name not in known:
            raise SystemExit(f"--peer {name} is unknown; known are {', '.join(known)}")
        # not resolved: a virtual environment's interpreter is a link to the one it was made with
        pythons[name] = str(Path(shutil.which(python) or python).absolute())
    for name in without:
        if name not in known:
            raise SystemExit(f"--without {name} is unknown; known are {', '.join(known)}")
    installed = {python: ask(python) for python in {sys.executable, *pythons.values()}}
    found = {}
    for name, peer in cpu.items():
        python = pythons.get(name, pythons.get(peer.tool, sys.executable))
        if {name, peer.tool} & set(without):
            continue
        if name in installed[python]:
            found[name] = Found(python, installed[python][name])
        elif {name, peer.tool} & set(pythons):
            raise SystemExit(
                f"--peer {name}: '{python}' has none of {', '.join(peer.packages)}; install it there"
            )
    return found


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--models", nargs="+", default=[], metavar="MODEL=DATA[=METRIC]")
    add("--fetched", type=Path, default=Path("fetched"), help="where fetch.py wrote [./fetched]")
    add("--peer", action="append", default=[], metavar="NAME=PYTHON")
    add("--without", action="append", default=[], metavar="NAME")
    add("--threads", default=[1], type=threads_of, help="for example 1,2 [1]")
    add("--effort", default="default", help="of qcompile [default]")
    add("--max-drop", default="2%", help="allowed of the score, where there is a metric [2%%]")
    add("--seconds", type=float, default=5.0, help="of timing an artifact [5]")
    add("--limit", type=float, default=600.0, help="seconds for a tool on a model [600]")
    add("--keep", type=Path, metavar="FOLDER", help="keep artifacts and what the tools printed")
    add("--json", type=Path, metavar="FILE", help="write rows, machine and versions")
    add("--markdown", type=Path, metavar="FILE", help="write the tables")
    return parser.parse_args(given)


def threads_of(text: str) -> list[int]:
    """ "1,2"."""
    found = [int(t) for t in text.split(",")]
    if min(found) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' must be numbers from 1")
    return found


def main() -> int:
    """Print each model's table when it is done, the summary at the end."""
    args = arguments()
    peers = peers_of(args.peer, args.without)
    pythons = {name: one.python for name, one in peers.items()}
    told = {name: one.version for name, one in peers.items()}
    machine, versions = describe_machine(), describe_versions()
    date = datetime.date.today().isoformat()
    rows: list[Row] = []
    for case in parse_cases(args.models) or default_cases(args.fetched):
        try:
            found = bench(case, pythons, args)
        except QCompileError as e:
            found = [Row(case.name, FLOAT, fault=first_line(e)[:TOLD], quantized=False)]
        rows += found
        print(tools_table(found, args.threads), end="\n\n", flush=True)
        tables = [
            summary_table(rows, args.threads[0]),
            tools_table(rows, args.threads),
            stages_table(rows),
            versions_text(machine, versions, told, date),
        ]
        if args.markdown is not None:  # after each model: a long run may be ended
            text = "\n\n".join(filter(None, tables)) + "\n"
            args.markdown.write_text(text, encoding="utf-8", newline="\n")
        if args.json is not None:
            content = {
                "date": date,
                "machine": machine,
                "versions": versions,
                "peers": told,
                "rows": [asdict(row) for row in rows],
            }
            text = json.dumps(content, indent=1) + "\n"
            args.json.write_text(text, encoding="utf-8", newline="\n")
    print("\n\n".join(filter(None, [tables[0], *tables[2:]])))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
