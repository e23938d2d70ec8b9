"""What calibration costs beside plain inference: time, and memory that must not grow with the samples.

    python benchmarks/calibration.py MODEL.onnx --data SAMPLES [--samples 8,256] [--threads 1,2]
        [--rounds 3] [--json out.json]

Plain inference is the user's model with all optimizations, the same threads and the same samples.
Both are timed from opening the session to the last sample; calibration until the ranges are chosen.
Every figure is taken in a process of its own that ends afterwards; times are medians over rounds in
which the kinds take turns. Peak memory is that of the whole process, Python and the model included.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import psutil

KINDS = {"plain": "plain inference", "minmax": "min-max", "auto": "all estimators"}
SAMPLED_EVERY = 0.005  # seconds between looks at the memory

Feed = dict[str, npt.NDArray[Any]]


class Samples:
    """Feeds of one folder of .npz files, read when they are needed, the first ``count`` in a ring."""

    def __init__(self, folder: Path, count: int) -> None:
        files = sorted(folder.glob("*.npz"))
        if not files:
            raise SystemExit(f"'{folder}' holds no .npz files")
        self.files = [files[i % len(files)] for i in range(count)]

    def __len__(self) -> int:
        return len(self.files)

    def __iter__(self) -> Iterator[Feed]:
        for file in self.files:
            with np.load(file) as arrays:
                yield {name: arrays[name] for name in arrays.files}


class PeakMemory(threading.Thread):
    """Resident memory of this process, looked at often; the peak of it (not every system keeps one)."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.process, self.peak, self.over = psutil.Process(), 0, threading.Event()

    def run(self) -> None:
        more = True
        while more:  # once more at the end: a run may be shorter than the wait
            more = not self.over.wait(SAMPLED_EVERY)
            self.peak = max(self.peak, self.process.memory_info().rss)


def work(kind: str, model: Path, data: Path, samples: int, threads: int) -> dict[str, float]:
    """Seconds of the run alone, and the peak memory of this process during it."""
    from qcompile.backends.ort import open_session
    from qcompile.backends.tables import get_target
    from qcompile.calibrate import calibrate
    from qcompile.options import make_options
    from qcompile.passes.integer_region import observed_tensors
    from qcompile.prepare import prepare

    feeds = Samples(data, samples)
    memory = PeakMemory()
    if kind == "plain":
        memory.start()
        start = time.perf_counter()
        session = open_session(model, threads=threads)
        for feed in feeds:
            session.run(feed)
        seconds = time.perf_counter() - start
    else:
        prepared = prepare(model, get_target("ort-int8", "native"), make_options())
        tensors = observed_tensors(prepared.sites)
        memory.start()
        start = time.perf_counter()
        found = calibrate(prepared.model, tensors, feeds, method=kind, threads=threads)
        found.ranges()
        seconds = time.perf_counter() - start
    memory.over.set()
    memory.join()
    return {"seconds": seconds, "peak_mb": memory.peak / 1e6}


def child(*words: object) -> dict[str, float]:
    """``work`` in a process of its own."""
    done = subprocess.run(
        [sys.executable, str(Path(__file__).resolve()), "--child", *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(done.stderr.strip().splitlines()[-1])
    found: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def measure(
    model: Path, data: Path, counts: list[int], threads: list[int], rounds: int
) -> list[dict[str, Any]]:
    """A row for each kind, number of samples and number of threads."""
    rows = []
    for count in counts:
        for thread in threads:
            taken: dict[str, list[dict[str, float]]] = {kind: [] for kind in KINDS}
            for _ in range(rounds):
                for kind in KINDS:
                    taken[kind].append(child(kind, model, data, count, thread))
            base = [t["seconds"] for t in taken["plain"]]
            for kind, found in taken.items():
                seconds = [t["seconds"] for t in found]
                row = {
                    "model": model.stem,
                    "kind": kind,
                    "samples": count,
                    "threads": thread,
                    "seconds": statistics.median(seconds),
                    "times_plain": statistics.median(
                        s / b for s, b in zip(seconds, base, strict=True)
                    ),
                    "peak_mb": statistics.median(t["peak_mb"] for t in found),
                }
                rows.append(row)
                print(line(row), flush=True)
    return rows


def line(row: dict[str, Any]) -> str:
    """A row of the Markdown table."""
    return (
        f"| {row['model']} | {KINDS[row['kind']]} | {row['samples']} | {row['threads']} "
        f"| {row['seconds']:.2f} | {row['times_plain']:.2f} | {row['peak_mb']:.0f} |"
    )


def main() -> int:
    """Print the table."""
    if sys.argv[1:2] == ["--child"]:
        kind, model, data, samples, threads = sys.argv[2:]
        print(json.dumps(work(kind, Path(model), Path(data), int(samples), int(threads))))
        return 0
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("--data", type=Path, required=True, help="folder of .npz feeds")
    parser.add_argument("--samples", default="8,256")
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    print("| model | kind | samples | threads | seconds | x plain | peak MB |")
    print("|---|---|---|---|---|---|---|")
    counts, cores = ([int(n) for n in text.split(",")] for text in (args.samples, args.threads))
    rows = measure(args.model, args.data, counts, cores, args.rounds)
    if args.json is not None:
        args.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8", newline="\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
