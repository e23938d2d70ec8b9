"""Latency, load time and memory of models, measured side by side in a process of their own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from qcompile.backends.ort import CPU
from qcompile.child import Child, run_child, stored_feeds
from qcompile.enough import Enough
from qcompile.interval import Interval, median_interval
from qcompile.ir.errors import ModelError

__all__ = [
    "LoadResult",
    "ModelSpeed",
    "SpeedResult",
    "child_options",
    "load_result",
    "measure_load",
    "measure_many",
    "measure_pair",
]

DEFAULT = Enough()

TIMED_FEEDS = 8
"""Feeds of one shape used for timing, spread evenly over those given: more add no knowledge."""

TIMED_SHAPES = 4
"""Shapes used for timing, where the feeds differ: from the smallest to the largest."""

Feed = Mapping[str, Any]
Progress = Callable[[float], None]


@dataclass(frozen=True)
class LoadResult:
    """What opening a model in a fresh process takes.

    Attributes:
        load_ms: until the session stands (the file is in the disk cache).
        first_ms: first inference; None if no feed could be run.
        memory_bytes: resident memory that the loaded model and its first inference add.
        errors: for each feed the runtime's message, None where it ran.
    """

    load_ms: float
    first_ms: float | None
    memory_bytes: int
    errors: tuple[str | None, ...]


@dataclass(frozen=True)
class ModelSpeed:
    """Latency of one model; percentiles over all timed runs, in milliseconds.

    Attributes:
        p50_ms: median.
        p90_ms: 90th percentile.
        p99_ms: 99th percentile.
        interval_ms: median of the groups' medians, with a 95 % interval.
        runs: timed runs.
        speedup: base latency / this latency, median of the groups with a 95 % interval; None
            for the base itself.
        load: opening it alone; None where only the latency was asked for.
    """

    p50_ms: float
    p90_ms: float
    p99_ms: float
    interval_ms: Interval
    runs: int
    speedup: Interval | None = None
    load: LoadResult | None = None


@dataclass(frozen=True)
class SpeedResult:
    """Models timed interleaved; the first is the base of every speedup.

    Attributes:
        models: name -> latency.
        base: name of the base.
        threads: threads inside an operator, None for ONNX Runtime's own choice.
        batch: size of the first axis of the first input.
        groups: how many times all sessions were opened anew and timed in turns.
        seconds: time the measurement took.
        spinning: whether idle threads span.
    """

    models: Mapping[str, ModelSpeed]
    base: str
    threads: int | None
    batch: int | None
    groups: int
    seconds: float
    spinning: bool

    def speedup(self, name: str) -> Interval:
        """Base latency / latency of ``name``.

        Raises:
            KeyError: ``name`` is the base or was not measured.
        """
        found = self.models[name].speedup
        if found is None:
            raise KeyError(name)
        return found

    def with_loads(self, loads: Mapping[str, LoadResult]) -> SpeedResult:
        """The same with load times and memory measured elsewhere."""
        models = {
            name: replace(one, load=loads.get(name, one.load)) for name, one in self.models.items()
        }
        return replace(self, models=models)


def measure_pair(
    float_path: Path,
    artifact_path: Path,
    feeds: Sequence[Feed],
    *,
    fused: Path | None = None,
    load: bool = True,
    **more: Any,
) -> SpeedResult:
    """Time an artifact against the float model; the models are named "float" and "artifact".

    With ``fused`` a third model of that name is timed beside them. See `measure_many`.
    """
    paths = {"float": float_path, "artifact": artifact_path}
    if fused is not None:
        paths["fused"] = fused
    return measure_many(paths, feeds, load=load, **more)


def measure_many(
    paths: Mapping[str, Path],
    feeds: Sequence[Feed],
    *,
    threads: int | None = None,
    budget_s: float = 10.0,
    enough: Enough = DEFAULT,
    spinning: bool | None = None,
    custom_ops: Path | None = None,
    load: bool = False,
    provider: str = CPU,
    process: Child | None = None,
    progress: Progress | None = None,
) -> SpeedResult:
    """Time models interleaved in one child process, as sessions with default options.

    Args:
        paths: name -> model; the first is the base of the speedups.
        feeds: inputs; at most eight are used, or four shapes where they differ (the speedup is then
            the geometric mean over these).
        threads: threads inside an operator; None leaves ONNX Runtime's choice.
        budget_s: time for the interleaved runs; they end earlier when every speedup is known as
            closely as is needed.
        enough: how closely that is; +-2 % unless told.
        spinning: whether idle threads spin. None: as ONNX Runtime does by default (they spin), and
            if half of the budget leaves the ratios vague, or will as it looks, once more without (unless
            opening the models takes longer than that half).
            (Two cores shared with other work, PP-OCRv4 recognition at two threads: 1.04 with an
            interval of 0.83 to 1.34 in 10 s spinning, 1.21 with 1.19 to 1.23 in 2 s without.)
        custom_ops: library with custom operators.
        provider: what executes them.
        process: one in which some of the models may stand open.
        load: also open each model in a fresh process of its own, for load time and memory.
        progress: told the share of the work done, 0 to 1.

    Raises:
        ModelError: a model cannot be opened or run, or crashes the runtime; names the model.
    """
    if not feeds:
        raise ModelError("no samples to time with; at least one is needed")
    if not paths:
        raise ValueError("no models to time")
    chosen, together = _chosen(feeds)
    with stored_feeds(chosen) as files:
        common = child_options(threads, spinning, custom_ops, provider)
        loads: dict[str, LoadResult] = {}
        if load:
            for name, path in paths.items():
                loads[name] = _load(name, path, files[:1], common)
        job = {
            "kind": "time",
            "models": {name: str(Path(path).resolve()) for name, path in paths.items()},
            "feeds": files,
            "together": together,
            "enough": enough.to_dict(),
            **common,
        }
        # one thread has nobody to wait for, so there is nothing to retry
        retry = spinning is None and threads != 1
        share = budget_s / (2 if retry else 1)
        job |= {"budget_s": share, "again_s": share if retry else 0.0}
        ask = run_child if process is None else process.ask
        found = ask(job, paths, progress)
        if found["again"] and enough.vague(found["ratios"]):
            common["spinning"] = False
            found = run_child({**job, **common, "again_s": 0.0}, paths, progress)
    models = {}
    for name in paths:
        p50, p90, p99 = found["latency_ms"][name]
        ratios = found["ratios"].get(name)
        models[name] = ModelSpeed(
            p50_ms=p50,
            p90_ms=p90,
            p99_ms=p99,
            interval_ms=median_interval([ns / 1e6 for ns in found["group_ns"][name]]),
            runs=found["runs"][name],
            speedup=median_interval(ratios) if ratios else None,
            load=loads.get(name),
        )
    return SpeedResult(
        models=models,
        base=next(iter(paths)),
        threads=threads,
        batch=_batch(feeds[0]),
        groups=found["groups"],
        seconds=found["seconds"],
        spinning=common["spinning"],
    )


def _chosen(feeds: Sequence[Feed]) -> tuple[list[Feed], bool]:
    """The feeds to time with, and whether they differ in shape (then all count in each group)."""
    by_shape: dict[tuple[tuple[int, ...], ...], Feed] = {}
    for feed in feeds:
        by_shape.setdefault(tuple(np.shape(v) for v in feed.values()), feed)
    if len(by_shape) == 1:
        return list(feeds)[:: max(1, -(-len(feeds) // TIMED_FEEDS))], False
    ordered = sorted(by_shape.values(), key=lambda f: sum(np.size(v) for v in f.values()))
    count = min(TIMED_SHAPES, len(ordered))
    return [ordered[round(i * (len(ordered) - 1) / (count - 1))] for i in range(count)], True


def measure_load(
    path: Path,
    feeds: Sequence[Feed],
    *,
    threads: int | None = None,
    spinning: bool = True,
    custom_ops: Path | None = None,
    config: Mapping[str, str] | None = None,
) -> LoadResult:
    """Open a model in a fresh process and run each feed once.

    A feed that the runtime refuses is no exception: its message stands in ``errors``. So this also
    tells, without danger for the caller's process, whether a foreign model can be run at all.

    Raises:
        ModelError: the model cannot be opened, or crashes the runtime.
    """
    with stored_feeds(feeds) as files:
        common = child_options(threads, spinning, custom_ops) | {"config": config}
        return _load(Path(path).name, path, files, common)


def _load(name: str, path: Path, files: list[str], common: Mapping[str, Any]) -> LoadResult:
    job = {"kind": "load", "model": str(Path(path).resolve()), "feeds": files, **common}
    return load_result(run_child(job, {name: path}, None))


def load_result(found: Mapping[str, Any]) -> LoadResult:
    """What a process replies to the job "load"."""
    names = ("load_ms", "first_ms", "memory_bytes")
    return LoadResult(**{name: found[name] for name in names}, errors=tuple(found["errors"]))


def child_options(
    threads: int | None, spinning: bool | None, custom_ops: Path | None, provider: str = CPU
) -> dict[str, Any]:
    """How a process is to open models, as its jobs say it."""
    library = str(custom_ops.resolve()) if custom_ops is not None else None
    spins = spinning is not False
    return {"threads": threads, "spinning": spins, "custom_ops": library, "provider": provider}


def _batch(feed: Feed) -> int | None:
    for value in feed.values():
        shape = np.shape(value)
        return int(shape[0]) if shape else None
    return None
