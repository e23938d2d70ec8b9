"""Whether preparing a model and scaling its channels leave its float function as it is.

    python benchmarks/same_function.py MODEL.onnx ... --data DIR [--samples 2]

DIR holds samples, or a folder of them for each model by its name. "prepared" compares the prepared graph
(folded, fused) with the model as it was exported; "scaled" compares the prepared graph with itself after
the channels of every region that can be scaled were divided by random powers of two, 2^-3 to 2^3: more
than any compile does. Both are the largest difference of a float output, relative to that output's peak.
Exit code 1 where one is above --limit.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as oir

from qcompile.backends.ort import open_session
from qcompile.backends.tables import get_target
from qcompile.data.inputs import Feed
from qcompile.data.sources import open_feeds
from qcompile.factors import fitting_factors, with_factors
from qcompile.ir.save import save_model
from qcompile.options import make_options
from qcompile.passes.scale_branches import find_all
from qcompile.passes.scale_regions import Region
from qcompile.prepare import prepare

REACH = 3


def some_exponents(region: Region, rng: np.random.Generator) -> tuple[int, ...]:
    """Random powers of two that a region's Clips allow."""
    drawn = rng.integers(-REACH, REACH + 1, region.channels)
    floor = np.where(region.least > 0, np.ceil(np.log2(np.maximum(region.least, 1e-30))), -REACH)
    drawn = np.where(region.fixed > 0, 0, np.maximum(drawn, floor))
    return tuple(int(k) for k in drawn)


def outputs(path: Path, feeds: list[Feed]) -> list[Mapping[str, Any]]:
    """What a model gives for each feed."""
    session = open_session(path, threads=1)
    taken = {port.name for port in session.inputs}
    return [session.run({k: v for k, v in feed.items() if k in taken}) for feed in feeds]


def saved(model: oir.Model, path: Path, feeds: list[Feed]) -> list[Mapping[str, Any]]:
    """The same of a model in memory."""
    save_model(model, path)
    return outputs(path, feeds)


def difference(wanted: list[Mapping[str, Any]], found: list[Mapping[str, Any]]) -> float:
    """The largest, relative to each output's peak over the samples."""
    largest = 0.0
    for name, first in wanted[0].items():
        if not isinstance(first, np.ndarray) or first.dtype.kind != "f" or not first.size:
            continue
        peak = max(float(np.abs(one[name]).max()) for one in wanted)
        for a, b in zip(wanted, found, strict=True):
            largest = max(largest, float(np.abs(a[name] - b[name]).max()) / max(peak, 1e-30))
    return largest


def row(model: Path, data: Path, samples: int, work: Path) -> tuple[str, float]:
    """One line of the table, and its largest difference."""
    prepared = prepare(model, get_target("ort-int8"), make_options())
    source = open_feeds(str(data), prepared.inputs)
    feeds = [source.load(i) for i in range(min(samples, len(source)))]
    regions, refused = find_all(prepared.model.graph)
    rng = np.random.default_rng(0)
    exponents, left = fitting_factors(prepared, {r.name: some_exponents(r, rng) for r in regions})
    if left:
        raise SystemExit(f"{model.stem}: {left[0].where}: {left[0].text}")
    original = outputs(model, feeds)
    before = saved(prepared.model, work / "prepared.onnx", feeds)
    found = [difference(original, before)]
    cells = [model.stem, f"{found[0]:.1e}", str(len(regions)), str(len(refused))]
    if exponents:
        scaled = with_factors(prepared, exponents).model
        found.append(difference(before, saved(scaled, work / "scaled.onnx", feeds)))
    cells.append(f"{found[1]:.1e}" if exponents else "nothing to scale")
    return "| " + " | ".join(cells) + " |", max(found)


def main() -> int:
    """Print a line for each model as it is done."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="+", type=Path, metavar="MODEL.onnx")
    parser.add_argument("--data", type=Path, required=True, help="samples, or NAME/ with them")
    parser.add_argument("--samples", type=int, default=2, help="[2]")
    parser.add_argument("--limit", type=float, default=1e-4, help="[1e-4]")
    args = parser.parse_args()
    print("| model | prepared differs by | tensors to scale | refused | scaled differs by |")
    print("|---|---|---|---|---|")
    worst = 0.0
    for model in args.models:
        folders = (args.data / model.stem, args.data)
        data = next(folder for folder in folders if folder.is_dir())
        with tempfile.TemporaryDirectory(prefix="same-function-") as folder:
            text, most = row(model, data, args.samples, Path(folder))
        print(text, flush=True)
        worst = max(worst, most)
    return int(not worst <= args.limit)


if __name__ == "__main__":
    raise SystemExit(main())
