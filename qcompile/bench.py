"""What a model costs when it is used: latency, throughput under a limit, start, memory, energy."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qcompile.backends.ort import open_session
from qcompile.child import run_child, stored_feeds
from qcompile.energy_meter import Energy
from qcompile.enough import Enough
from qcompile.interface import at_batch
from qcompile.ir.errors import ModelError, OptionError
from qcompile.measure import SpeedResult, measure_many
from qcompile.reporter import Reporter, Silent
from qcompile.serve import Served
from qcompile.units import parse_milliseconds

__all__ = ["Bench", "Slo", "bench", "parse_slo"]

_SLO = re.compile(r"p(\d{1,2}(?:\.\d+)?)\s*=\s*(.+)")


@dataclass(frozen=True)
class Slo:
    """A limit of latency: ``p99=10ms``.

    Attributes:
        percentile: of the requests.
        limit_ms: from arrival to answer.
    """

    percentile: float
    limit_ms: float

    def __str__(self) -> str:
        return f"p{self.percentile:g} <= {self.limit_ms:g} ms"


def parse_slo(text: str) -> Slo:
    """Read "p99=10ms".

    Raises:
        OptionError: it reads otherwise.
    """
    found = _SLO.fullmatch(text.strip())
    if not found or float(found[1]) <= 0:
        raise OptionError(f"--slo '{text}' is no limit; write for example p99=10ms")
    return Slo(float(found[1]), parse_milliseconds(found[2], "--slo"))


@dataclass(frozen=True)
class Load:
    """What a running model took and gave.

    Attributes:
        per_second: runs a second in a plain loop.
        energy: over that loop.
        runs: in that loop.
        tried: rates tried for the limit, in order.
    """

    per_second: float
    energy: Energy
    runs: int
    tried: tuple[Served, ...] = ()

    @property
    def best(self) -> Served | None:
        """The highest rate that kept the limit."""
        return max((t for t in self.tried if t.kept), key=lambda t: t.rate, default=None)


@dataclass(frozen=True)
class Bench:
    """Models measured on this machine.

    Attributes:
        speed: latencies, interleaved, with start and memory; the first is the base.
        loads: name -> throughput and energy.
        batch: size of the first axis.
        concurrency: requests answered at a time.
        slo: the limit of the throughput.
        notes: what could not be measured.
    """

    speed: SpeedResult
    loads: Mapping[str, Load]
    batch: int | None
    concurrency: int
    slo: Slo | None
    notes: Sequence[str] = field(default_factory=tuple)


def bench(
    models: Mapping[str, Path],
    feeds: Sequence[Mapping[str, Any]],
    *,
    threads: int | None = None,
    batch: int | None = None,
    seconds: float = 10.0,
    concurrency: int = 1,
    slo: Slo | None = None,
    custom_ops: Path | None = None,
    reporter: Reporter | None = None,
) -> Bench:
    """Measure models, each in processes of its own.

    Args:
        models: name -> file; the first is the base of the speedups.
        feeds: samples.
        threads: inside an operator; None leaves ONNX Runtime's choice.
        batch: size of the first axis; None takes the samples as they are.
        seconds: for each of: latency of all, load of each model.
        concurrency: requests answered at a time, on one session.
        slo: the throughput that keeps it is looked for.
        custom_ops: library with custom operators.
        reporter: told the stages.

    Raises:
        ModelError: a model cannot be opened or run.
        OptionError: the batch is fixed in the model.
    """
    tell = reporter or Silent()
    first = next(iter(models.values()))
    used = _batched(first, feeds, batch, custom_ops)
    tell.stage("latency")
    speed = measure_many(
        models,
        used,
        threads=threads,
        budget_s=seconds,
        enough=Enough(half_width=0.01),
        load=True,
        custom_ops=custom_ops,
        progress=lambda share: tell.advance(share, 1.0),
    )
    loads = {}
    for name, path in models.items():
        tell.stage(f"load of {name}")
        loads[name] = _load(
            path, used, threads, seconds, concurrency, slo, custom_ops,
            lambda share: tell.advance(share, 1.0),
        )  # fmt: skip
    return Bench(speed, loads, speed.batch, concurrency, slo)


def _batched(
    model: Path, feeds: Sequence[Mapping[str, Any]], batch: int | None, custom_ops: Path | None
) -> list[Mapping[str, Any]]:
    if not feeds:
        raise ModelError("no samples to measure with; at least one is needed")
    if batch is None:
        return list(feeds)
    inputs = open_session(model, custom_ops=custom_ops).inputs
    made = [at_batch(feed, inputs, batch) for feed in feeds[:8]]
    whole = [feed for feed in made if feed is not None]
    if not whole:
        shapes = "; ".join(f"{p.name} {'x'.join(map(str, p.shape))}" for p in inputs)
        raise OptionError(
            f"--batch {batch}: the model fixes its batch ({shapes}); leave --batch out"
        )
    return list(whole)


def _load(
    path: Path,
    feeds: Sequence[Mapping[str, Any]],
    threads: int | None,
    seconds: float,
    concurrency: int,
    slo: Slo | None,
    custom_ops: Path | None,
    progress: Callable[[float], None],
) -> Load:
    with stored_feeds(feeds[:8]) as files:
        job = {
            "kind": "serve",
            "model": str(path.resolve()),
            "feeds": files,
            "threads": threads,
            "spinning": False,
            "custom_ops": None if custom_ops is None else str(custom_ops.resolve()),
            "seconds": seconds,
            "concurrency": concurrency,
            "percentile": slo.percentile if slo else None,
            "limit_ms": slo.limit_ms if slo and math.isfinite(slo.limit_ms) else None,
        }
        found = run_child(job, {path.name: path}, progress)
    return Load(
        found["count"] / found["seconds"],
        Energy(**found["energy"]),
        found["count"],
        tuple(Served(**one) for one in found["tried"]),
    )
