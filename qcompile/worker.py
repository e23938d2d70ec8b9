"""The child process that measures: ``python -m qcompile.worker``, jobs on stdin, JSON lines on stdout.

Its own process, so that thread counts, load time and memory are a deployed model's, and so that a
model that crashes the runtime takes only the child with it. Imports little for the same reason.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from qcompile.backends.ort import CPU, Session, open_session, runtime_version
from qcompile.enough import Enough
from qcompile.interleave import interleave, warm
from qcompile.ir.errors import QCompileError
from qcompile.kept_outputs import keep_outputs

Emit = Callable[[Mapping[str, Any]], None]

SETTLE_S = 0.06
"""For so long after a run ONNX Runtime's idle threads spin (45 to 50 ms of processor time, whatever was run)
and take a core from the model whose turn is next: on two cores SmolLM2 in INT4 took 142 ms where it takes 90,
MobileNetV2 0.9 where it takes 0.5."""


class _Kept(NamedTuple):
    """An opened model, the seconds that took, and resident memory before and after."""

    session: Session
    seconds: float
    before: int
    after: int


_KEPT: dict[str, _Kept] = {}
"""What a job left open for the next, by model and options."""


def main() -> int:
    """Do the jobs read from stdin; a reply is a JSON line, a job's last has "result" or "error"."""
    # libraries may print on stdout; the protocol keeps the real one for itself
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)

    def emit(message: Mapping[str, Any]) -> None:
        replies.write(json.dumps(message) + "\n")
        replies.flush()

    kinds = {
        "load": _load,
        "keep": _keep,
        "try": _try,
        "run": _run,
        "time": _time,
        "serve": _serve,
    }
    for line in sys.stdin:
        job: dict[str, Any] = json.loads(line)
        try:
            emit({"result": kinds[job["kind"]](job, emit)})
        except QCompileError as e:
            emit({"error": str(e), "model": getattr(e, "model", None)})
        except MemoryError:
            emit({"error": "not enough memory", "model": None})
        except OSError as e:  # no room for outputs
            emit({"error": f"{e.filename or 'a file'}: {e.strerror or e}", "model": None})
    return 0


def _open(job: Mapping[str, Any], path: str) -> Session:
    return open_session(
        Path(path),
        threads=job["threads"],
        spinning=job["spinning"],
        custom_ops=job["custom_ops"],
        provider=job.get("provider", CPU),
        config=job.get("config"),
    )


def _key(job: Mapping[str, Any], path: str) -> str:
    """What two openings must share to be one."""
    names = ("threads", "spinning", "custom_ops", "provider", "config")
    return json.dumps([path, *((job.get(name) or None) for name in names)])


def _feeds(paths: Sequence[str]) -> list[dict[str, Any]]:
    feeds = []
    for path in paths:
        with np.load(path, allow_pickle=False) as stored:
            feeds.append({name: stored[name] for name in stored.files})
    return feeds


def _load(job: Mapping[str, Any], emit: Emit) -> dict[str, Any]:
    """Load time, first inference and memory of one model; then each feed once, with its error."""
    return _tried(_opened(job), job, emit)


def _keep(job: Mapping[str, Any], emit: Emit) -> dict[str, Any]:
    """Open a model for the jobs that follow."""
    kept = _KEPT[_key(job, job["model"])] = _opened(job)
    ports = {"inputs": kept.session.inputs, "outputs": kept.session.outputs}
    return {way: [[p.name, p.type, p.shape] for p in found] for way, found in ports.items()}


def _try(job: Mapping[str, Any], emit: Emit) -> dict[str, Any]:
    """What the job "load" tells, of a model that stands open and was not run yet."""
    return _tried(_KEPT[_key(job, job["model"])], job, emit)


def _opened(job: Mapping[str, Any]) -> _Kept:
    import psutil

    runtime_version()  # imports the runtime, which is no cost of the model
    process = psutil.Process()
    gc.collect()
    before = process.memory_info().rss
    start = time.perf_counter()
    session = _open(job, job["model"])
    seconds = time.perf_counter() - start
    return _Kept(session, seconds, before, process.memory_info().rss)


def _tried(kept: _Kept, job: Mapping[str, Any], emit: Emit) -> dict[str, Any]:
    import psutil

    feeds = _feeds(job["feeds"])
    process = psutil.Process()
    errors: list[str | None] = []
    first_ms, memory = None, kept.after - kept.before
    read = process.memory_info().rss - kept.after  # the feeds are no memory of the model
    places, room = job.get("places", ()), job.get("room", 0)
    for index, (feed, place) in enumerate(zip_longest(feeds, places)):
        begin = time.perf_counter()
        try:
            found = kept.session.run(feed)
        except QCompileError as e:
            errors.append(str(e))
        else:
            errors.append(None)
            if first_ms is None:
                first_ms = (time.perf_counter() - begin) * 1e3
                memory = process.memory_info().rss - kept.before - read
            if place is not None:
                room -= keep_outputs(Path(place), found, room)
            del found
        emit({"progress": index + 1, "of": len(feeds)})
    return {
        "load_ms": kept.seconds * 1e3,
        "first_ms": first_ms,
        "memory_bytes": max(0, memory),
        "errors": errors,
        "room": room,
    }


def _run(job: Mapping[str, Any], emit: Emit) -> dict[str, Any]:
    """The outputs of feeds as files, by a model that an earlier job kept."""
    session = _KEPT[_key(job, job["model"])].session
    room = job["room"]
    for index, (feed, place) in enumerate(zip(_feeds(job["feeds"]), job["places"], strict=True)):
        room -= keep_outputs(Path(place), session.run(feed), room)
        emit({"progress": index + 1, "of": len(job["places"])})
    return {"room": room}


def _time(job: Mapping[str, Any], emit: Emit) -> dict[str, Any]:
    """Time all models interleaved until every ratio to the first is known closely or time is up."""
    feeds = _feeds(job["feeds"])

    keys = {name: _key(job, path) for name, path in job["models"].items()}
    kept = {name: _KEPT[key] for name, key in keys.items() if key in _KEPT}

    def open_one(name: str) -> Callable[[int], Any]:
        try:
            session = kept[name].session if name in kept else _open(job, job["models"][name])
            own = [session.given(feed) for feed in feeds]
            session.run_raw(own[0])
        except QCompileError as e:
            e.model = name  # type: ignore[attr-defined]
            raise
        run = session.raw.run
        return lambda index: run(None, own[index])

    gc.collect()
    gc.disable()
    found = interleave(
        list(job["models"]),
        open_one,
        feeds=len(feeds),
        together=job["together"],
        budget_s=job["budget_s"],
        enough=Enough(**job["enough"]),
        again_s=job["again_s"],
        settle_s=SETTLE_S if job["spinning"] and job["threads"] != 1 and len(keys) > 1 else 0.0,
        paid_s=sum(one.seconds for one in kept.values()),
        progress=lambda share: emit({"progress": share, "of": 1.0}),
    )
    # a fast model has 100,000 runs: the parent needs only their percentiles
    runs = found.pop("runs_ns")
    return {
        **found,
        "latency_ms": {
            name: [float(v) / 1e6 for v in np.percentile(each, (50, 90, 99))]
            for name, each in runs.items()
        },
    }


def _serve(job: Mapping[str, Any], emit: Emit) -> dict[str, Any]:
    """Energy and throughput of one model: a plain loop, then requests at a rate, if a limit is given."""
    from dataclasses import asdict

    from qcompile.energy_meter import metered
    from qcompile.serve import best_rate

    feeds = _feeds(job["feeds"])
    session = _open(job, job["model"])
    feeds = [session.given(feed) for feed in feeds]

    def run(index: int) -> Any:
        return session.raw.run(None, feeds[index % len(feeds)])

    alone = warm(run, 0, time.perf_counter_ns) / 1e9
    share = 0.3 if job["limit_ms"] is not None else 1.0
    count = max(1, round(job["seconds"] * share / alone))
    with metered() as energy:
        start = time.perf_counter()
        for index in range(count):
            run(index)
        spent = time.perf_counter() - start
    emit({"progress": share, "of": 1.0})
    tried = []
    if job["limit_ms"] is not None:
        tried = [
            asdict(one)
            for one in best_rate(
                run,
                alone,
                job["seconds"] * (1 - share),
                job["concurrency"],
                job["percentile"],
                job["limit_ms"],
                lambda done: emit({"progress": share + (1 - share) * done, "of": 1.0}),
            )
        ]
    return {"count": count, "seconds": spent, "energy": asdict(energy), "tried": tried}


if __name__ == "__main__":
    sys.exit(main())
