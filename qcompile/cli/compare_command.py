"""`qcompile compare A B`: two models or artifacts beside each other."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click

from qcompile.backends.ort import check_runtime
from qcompile.cli.flags import SETTINGS, data_flags, json_flag, path_argument, verbosity_flags
from qcompile.cli.output import Progress, print_json
from qcompile.cli.samples import find_samples
from qcompile.compare import SQNR_MAX, OutputResult
from qcompile.divergence import TensorError
from qcompile.side_by_side import SideBySide, side_by_side
from qcompile.subject import open_subject
from qcompile.units import parse_seconds
from qcompile.verdict import faster

__all__ = ["command"]

SHOWN = 10


@click.command("compare", context_settings=SETTINGS)
@path_argument("first")
@path_argument("second")
@data_flags
@click.option("--samples", type=int, default=32, help="At most so many samples [32].")
@click.option("--min-sqnr", type=float, default=10.0, help="Below it is bad, in dB [10].")
@click.option("--layers/--no-layers", default=True, help="Compare every inner tensor [on].")
@click.option("--time", "seconds", default="5s", help="For timing; 0s skips it [5s].")
@click.option("--threads", type=int, help="[the runtime's default]")
@json_flag
@verbosity_flags
def command(
    first: Path,
    second: Path,
    calibration: str | None,
    preprocess: str | None,
    custom_ops: Path | None,
    samples: int,
    min_sqnr: float,
    layers: bool,
    seconds: str,
    threads: int | None,
    as_json: bool,
    verbose: bool,
    quiet: bool,
) -> int:
    r"""Compare SECOND with FIRST, which counts as right: outputs, inner tensors, speed, size.

    Each is a model of any tool or an artifact's folder. Where an output is bad, the first node on the
    way to it is named that is bad while all that it reads is good; --no-layers finds such a node by
    bisection, without looking at every tensor.

    \b
    qcompile compare model.onnx model.ort-int8/ --calibration data/
    qcompile compare model.onnx anyones_int8.onnx -c data/ --threads 1
    qcompile compare last-week/ model.ort-int8/ --json
    """
    check_runtime()
    one, two = open_subject(first), open_subject(second)
    feeds = find_samples((one, two), calibration, preprocess, samples)
    with Progress(quiet=quiet or as_json, verbose=verbose) as progress:
        found = side_by_side(
            one,
            two,
            list(feeds),
            names=feeds.names,
            limit_db=min_sqnr,
            layers=layers,
            seconds=0.0 if seconds in ("0", "0s") else parse_seconds(seconds, "--time"),
            threads=threads,
            custom_ops=custom_ops,
            reporter=progress,
        )
    if feeds.random:
        found.notes.append("compared on random data, which says little; pass --calibration")
    if as_json:
        print_json({**vars(found), "samples": len(feeds), "random": feeds.random})
        return 0
    print(f"{two.name} beside {one.name}, on {len(feeds)} samples ({feeds.description})")
    print("\n".join(_lines(found, min_sqnr)))
    return 0


def _lines(found: SideBySide, limit: float) -> Iterator[str]:
    for output in found.outputs:
        yield f"  output {output.name}: {_output(output)}"
    drops = sorted(found.layers, key=lambda t: -t.drop_db)[:SHOWN]
    drops = [t for t in drops if t.drop_db > 0.5 and t.sqnr_db < SQNR_MAX]
    if drops:
        yield f"  {found.compared} inner tensors have a name in both; the largest drops:"
        for row in drops:
            yield f"    {_drop(row)}"
    if found.bad_output is not None:
        yield from _bad(found, found.bad_output, limit)
    elif any(o.sqnr_db is not None for o in found.outputs):
        yield f"  first bad node: none, every float output has at least {limit:g} dB"
    yield from _cost(found)
    for note in found.notes:
        yield f"  note: {note}"


def _output(output: OutputResult) -> str:
    if output.kind != "float" or output.sqnr_db is None:
        return f"{output.agreement or 0.0:.2%} of the elements are equal"
    if not output.max_abs_error and not output.shape_differs and not output.nonfinite:
        return "equal"
    parts = [f"SQNR {output.sqnr_db:.1f} dB"]
    if (group := output.worst_group) is not None:
        parts.append(f"{group.sqnr_db:.1f} dB in {group.text}")
    if output.worst_sqnr_db is not None:
        parts.append(f"worst sample {output.worst_sqnr_db:.1f} dB ({output.worst_sample})")
    parts.append(f"largest error {output.max_abs_error:.3g} at a peak of {output.peak:.3g}")
    if output.agreement is not None:
        parts.append(f"same class {output.agreement:.1%}")
    if output.nonfinite:
        parts.append(f"{output.nonfinite} NaN or infinite values")
    if output.shape_differs:
        parts.append(f"another shape in {output.shape_differs} samples")
    return ", ".join(parts)


def _db(value: float | None) -> str:
    return "exact" if value is None or value >= SQNR_MAX else f"{value:.1f} dB"


def _drop(row: TensorError) -> str:
    return f"{row.node} ({row.op_type}): reads {_db(row.reads_db)}, writes {_db(row.sqnr_db)}"


def _bad(found: SideBySide, output: OutputResult, limit: float) -> Iterator[str]:
    if found.first_bad is not None:
        yield f"  first bad node on the way to '{output.name}': {_drop(found.first_bad)}"
    elif found.compared:
        yield (
            f"  first bad node on the way to '{output.name}': behind the last tensor that both "
            f"models have; all of those have at least {limit:g} dB"
        )
    written = found.as_written_db
    if written is not None and output.sqnr_db is not None and written > output.sqnr_db + 6.0:
        yield (
            f"  with its Q/DQ nodes run as they are written '{output.name}' has {written:.1f} dB: "
            "ONNX Runtime's fusion of them is what spoils it"
        )


def _cost(found: SideBySide) -> Iterator[str]:
    if found.speed is not None:
        a, b = found.speed.models["a"], found.speed.models["b"]
        ratio = found.speed.speedup("b")
        threads = found.speed.threads
        yield (
            f"  speed: {a.p50_ms:.3g} -> {b.p50_ms:.3g} ms p50, {faster(ratio.value)} "
            f"({ratio.reach(unit='x')}; "
            f"{'default threads' if threads is None else f'threads: {threads}'})"
        )
        if a.load is not None and b.load is not None:
            yield f"  load: {a.load.load_ms:.0f} -> {b.load.load_ms:.0f} ms" + (
                f", memory {a.load.memory_bytes / 1e6:.1f} -> {b.load.memory_bytes / 1e6:.1f} MB"
            )
    one, two = found.bytes
    if one and two:
        yield f"  size: {one / 1e6:.2f} -> {two / 1e6:.2f} MB ({one / two:.2f}x)"
