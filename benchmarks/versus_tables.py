"""The tables of versus.py in Markdown: every tool, the summary, qcompile's stages, the versions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

FLOAT = "float"
QCOMPILE = "qcompile"


@dataclass
class Row:
    """One tool on one model; what failed says so in ``fault`` and has no other numbers.

    Attributes:
        quantized: False for float baselines.
        ms: threads -> median latency.
        speedup: threads -> float latency / this one.
        keeps: whether it is as accurate as was asked: the score within the allowed drop, or
            without a metric no worse in SQNR than qcompile; None: not known.
        integer_share: of the multiply-adds; qcompile's own.
        stages: name -> seconds; qcompile's own.
    """

    model: str
    tool: str
    fault: str = ""
    quantized: bool = True
    ms: dict[int, float] = field(default_factory=dict)
    speedup: dict[int, float] = field(default_factory=dict)
    sqnr_db: float | None = None
    score: float | None = None
    keeps: bool | None = None
    megabytes: float | None = None
    compile_s: float | None = None
    peak_mb: float | None = None
    integer_share: float | None = None
    stages: dict[str, float] = field(default_factory=dict)


def render(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; a bar in a cell would begin another one."""
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for row in rows:
        lines.append("| " + " | ".join(cell.replace("|", "/") for cell in row) + " |")
    return "\n".join(lines)


def tools_table(rows: Sequence[Row], threads: Sequence[int]) -> str:
    """A row for every tool on every model; a failed one says why where its latency would stand."""
    heads = ["model", "tool"]
    heads += [f"{t} thread{'s' * (t > 1)}" for t in threads]
    heads += ["SQNR dB", "score", "MB", "compile s", "peak MB"]
    lines = []
    for row in rows:
        cost = [figure(row.compile_s, 1), figure(row.peak_mb, 0)]
        if row.fault:
            cells = [row.fault, *[""] * (len(heads) - 5)]
        else:
            cells = [speed(row, t) for t in threads]
            cells += [figure(row.sqnr_db, 1), figure(row.score, 4), figure(row.megabytes, 2)]
        lines.append([row.model, row.tool, *cells, *cost])
    return render(heads, lines)


def summary_table(rows: Sequence[Row], threads: int) -> str:
    """A row for each model: qcompile, the fastest peer as accurate as asked, the most accurate one."""
    heads = ["model", "float ms", "qcompile", "float -> INT8", "integer multiply-adds"]
    heads += ["fastest peer that keeps accuracy", "most accurate peer"]
    lines = []
    for model in dict.fromkeys(row.model for row in rows):
        tools = {row.tool: row for row in rows if row.model == model}
        base, ours = tools.get(FLOAT), tools.get(QCOMPILE)
        if base is None or ours is None:  # the model itself could not be read
            fault = next(iter(tools.values())).fault
            lines.append([model, "", fault, *[""] * (len(heads) - 3)])
            continue
        timed = [r for r in tools.values() if r.quantized and threads in r.speedup and r != ours]
        fast = max((r for r in timed if r.keeps), key=lambda r: r.speedup[threads], default=None)
        good = max(timed, key=_accuracy, default=None)
        share = "" if ours.integer_share is None else f"{ours.integer_share:.0%}"
        if ours.fault:
            cells = [ours.fault, "", ""]
        else:
            cells = [f"{ours.speedup[threads]:.2f}x", _kept(base, ours), share]
        ms = f"{base.ms[threads]:.3g}" if threads in base.ms else ""
        lines.append([model, ms, *cells, _told(fast, threads), _told(good, threads)])
    return render(heads, lines)


def stages_table(rows: Sequence[Row]) -> str:
    """Seconds of each stage of qcompile; empty where none was measured.

    "rest" is what the process took beside them: start-up, and the report after the last stage's clock.
    """
    ours = [row for row in rows if row.stages]
    names = list(dict.fromkeys(name for row in ours for name in row.stages))
    if not names:
        return ""
    lines = []
    for row in ours:
        all_s = row.compile_s or 0.0
        rest = max(0.0, all_s - sum(row.stages.values()))
        cells = [figure(row.stages.get(name), 1) for name in names]
        lines.append([row.model, *cells, figure(rest, 1), figure(all_s, 1)])
    return render(["model", *names, "rest", "all"], lines)


def versions_text(
    machine: Mapping[str, Any], versions: Mapping[str, str], peers: Mapping[str, str], date: str
) -> str:
    """What was measured where, and which version each peer has."""
    cpu = f"{machine['cpu']} ({', '.join([machine['system'], *machine['features']])})"
    cores = f"{machine['cores']} core{'s' * (machine['cores'] != 1)}"
    own = ", ".join(f"{name} {version}" for name, version in versions.items())
    lines = [f"Measured {date} on {cpu}, {cores}; compiled and timed with {own}."]
    tools: dict[str, list[str]] = {}
    for name, version in peers.items():
        tools.setdefault(version, []).append(name)
    lines += [f"* {', '.join(names)}: {version}" for version, names in tools.items()]
    return "\n".join(lines)


def speed(row: Row, threads: int) -> str:
    """Latency and speedup."""
    if threads not in row.ms:
        return ""
    return f"{row.ms[threads]:.3g} ms, {row.speedup[threads]:.2f}x"


def figure(value: float | None, digits: int) -> str:
    """A number, or nothing."""
    return "" if value is None else f"{value:.{digits}f}"


def _accuracy(row: Row) -> float:
    return float("-inf") if row.sqnr_db is None else row.sqnr_db


def _kept(base: Row, row: Row) -> str:
    if base.score is None or row.score is None:
        return f"{figure(row.sqnr_db, 1)} dB"
    return f"{base.score:.3f} -> {row.score:.3f}"


def _told(row: Row | None, threads: int) -> str:
    if row is None:
        return "none"
    found = [f"{row.tool} {row.speedup[threads]:.2f}x"]
    found += [] if row.score is None else [f"{row.score:.3f}"]
    found += [] if row.sqnr_db is None else [f"{row.sqnr_db:.1f} dB"]
    return ", ".join(found)
