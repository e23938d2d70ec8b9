"""`qcompile bench BUILD`: latency, throughput, start, memory and energy, against the float model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from qcompile.backends.ort import check_runtime, runtime_version
from qcompile.bench import Bench, bench, parse_slo
from qcompile.cli.flags import SETTINGS, data_flags, json_flag, path_argument, verbosity_flags
from qcompile.cli.output import Progress, print_json
from qcompile.cli.samples import find_samples
from qcompile.environment import describe_machine
from qcompile.ir.errors import OptionError
from qcompile.subject import find_float_model, open_subject
from qcompile.verdict import faster

__all__ = ["command"]


@click.command("bench", context_settings=SETTINGS)
@path_argument("build")
@click.option(
    "--float", "float_model", type=click.Path(path_type=Path), help="Original model.onnx."
)
@data_flags
@click.option("--threads", type=click.IntRange(min=1), help="[the runtime's default]")
@click.option("--batch", type=click.IntRange(min=1), help="Size of the first axis [the samples'].")
@click.option("--seconds", type=click.FloatRange(min=0.1), default=10.0, help="Each part [10].")
@click.option(
    "--concurrency", type=click.IntRange(min=1), default=1, help="Requests at a time [1]."
)
@click.option("--slo", help="Throughput that keeps a limit, for example p99=10ms.")
@json_flag
@verbosity_flags
def command(
    build: Path,
    float_model: Path | None,
    calibration: str | None,
    preprocess: str | None,
    custom_ops: Path | None,
    threads: int | None,
    batch: int | None,
    seconds: float,
    concurrency: int,
    slo: str | None,
    as_json: bool,
    verbose: bool,
    quiet: bool,
) -> int:
    r"""Measure the artifact or model in BUILD on this machine, against its float model.

    Latencies are interleaved. With --slo requests arrive at random times and latency counts from the
    arrival. Energy is that of the whole package, board or GPU, where it can be read.

    \b
    qcompile bench model.ort-int8/
    qcompile bench model.ort-int8/ --threads 4 --batch 8 --seconds 30
    qcompile bench model.ort-int8/ --concurrency 4 --slo p99=10ms --json
    """
    check_runtime()
    limit = None if slo is None else parse_slo(slo)
    subject = open_subject(build)
    if subject.portable:
        raise OptionError(
            f"'{build}' is for {subject.report()['target']['device']}: its speed is the device's; "
            "run deploy/device.py there"
        )
    base = find_float_model(subject, float_model)
    feeds = find_samples([subject], calibration, preprocess, 64)
    models = {subject.name: subject.model}
    if base is not None:
        models = {"float": base, **models}
    with Progress(quiet=quiet or as_json, verbose=verbose) as progress:
        found = bench(
            models,
            list(feeds),
            threads=threads,
            batch=batch,
            seconds=seconds,
            concurrency=concurrency,
            slo=limit,
            custom_ops=custom_ops,
            reporter=progress,
        )
    notes = [f"measured on {feeds.description}"]
    if base is None:
        missing = "the float model is not here; name it with --float to measure against it"
        notes.append("this is a plain model; " + missing if subject.artifact is None else missing)
    if as_json:
        print_json({**vars(found), "notes": notes, "machine": describe_machine()})
    else:
        _print(found, notes)
    return 0


def _print(found: Bench, notes: list[str]) -> None:
    threads = found.speed.threads
    how = "default threads" if threads is None else f"threads: {threads}"
    print(
        f"ONNX Runtime {runtime_version()}, {how}, batch: {found.batch or '?'}, {describe_machine()['cpu']}"
    )
    names = list(found.speed.models)
    table = Table("", *names, box=None, pad_edge=False)
    for row in _rows(found, names):
        table.add_row(*row)
    Console(highlight=False).print(table)
    energy = found.loads[names[-1]].energy
    if not energy.joules:
        notes = [*notes, f"energy: {energy.why()}"]
    for note in notes:
        print(f"  note: {note}")


def _rows(found: Bench, names: list[str]) -> Iterator[list[str]]:
    models = [found.speed.models[n] for n in names]
    loads = [found.loads[n] for n in names]
    for label, key in (("p50", "p50_ms"), ("p90", "p90_ms"), ("p99", "p99_ms")):
        yield [f"latency {label}", *(f"{getattr(m, key):.3f} ms" for m in models)]
    if len(names) > 1:
        ratios = [m.speedup for m in models]
        yield ["against float", *("" if r is None else faster(r.value) for r in ratios)]
    starts = [m.load for m in models]
    yield ["load", *("" if s is None else f"{s.load_ms:.1f} ms" for s in starts)]
    first = [None if s is None else s.first_ms for s in starts]
    yield ["first inference", *("" if f is None else f"{f:.2f} ms" for f in first)]
    yield ["memory", *("" if s is None else f"{s.memory_bytes / 1e6:.1f} MB" for s in starts)]
    yield ["runs a second, one at a time", *(f"{one.per_second:.0f}" for one in loads)]
    if found.slo is not None:
        best = [one.best for one in loads]
        yield [
            f"requests a second, {found.slo}, {found.concurrency} at a time",
            *("none keeps it" if b is None else f"{b.rate:.0f}" for b in best),
        ]
    yield ["energy a run", *(one.energy.text(one.runs) for one in loads)]
