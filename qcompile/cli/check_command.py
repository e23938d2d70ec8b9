"""`qcompile check FLOAT OTHER`: the gate alone, on any tool's model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from qcompile.backends.ort import check_runtime, open_session
from qcompile.cli.flags import SETTINGS, verbosity_flags
from qcompile.cli.output import Progress, check_line, print_json
from qcompile.data.inputs import input_specs
from qcompile.data.sources import open_feeds
from qcompile.gate import Limits, judge
from qcompile.ir.load import load_model
from qcompile.options import make_options
from qcompile.rollout import find_rollout
from qcompile.scores import make_metric
from qcompile.scratch import scratch_folder
from qcompile.selected import exposed_pair

__all__ = ["command"]


@click.command("check", context_settings=SETTINGS)
@click.argument("float_model", type=click.Path(path_type=Path))
@click.argument("other", type=click.Path(path_type=Path))
@click.option(
    "-c", "--calibration", help="Samples to judge on: folder, .npz, .npy, file.py:function."
)
@click.option("--preprocess", help="Images: preset or recipe.")
@click.option("--samples", type=int, help="At most so many samples [256].")
@click.option("--metric", help="top1, cer, ppl, or file.py:function (run) -> float.")
@click.option("--metric-direction", type=click.Choice(["max", "min"]))
@click.option("--eval-data", help="Samples for a built-in metric.")
@click.option("--labels", help="labels.csv: sample name,label.")
@click.option("--state", multiple=True, help="OUTPUT=INPUT that is fed back, or none [by names].")
@click.option("--steps", type=int, help="Calls in a row to judge where state is fed back [16].")
@click.option("--max-drop", help="Allowed loss of the metric: 1% or 0.5pt.")
@click.option("--min-sqnr", type=float, help="Least SQNR in dB [10, off with --metric].")
@click.option("--min-speedup", type=float, help="[1.0]")
@click.option("--max-latency", help="p50 limit, for example 5ms.")
@click.option("--max-size", help="For example 4MB.")
@click.option("--threads", type=int)
@click.option("--gate-time", help="[20s]")
@click.option("--custom-ops", help="Library with custom operators.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@verbosity_flags
def command(
    float_model: Path, other: Path, as_json: bool, verbose: bool, quiet: bool, **given: Any
) -> int:
    r"""Judge OTHER, a quantized model of any tool, against FLOAT_MODEL.

    \b
    qcompile check float.onnx anyones_int8.onnx --calibration data/
    """
    check_runtime()
    options = make_options(**given)
    loaded = load_model(float_model).model
    specs = input_specs(loaded)
    feeds = open_feeds(options.calibration, specs, preprocess=options.preprocess, seed=options.seed)
    feeds = feeds.subset(range(min(len(feeds), options.samples)))
    opened = open_session(float_model, threads=options.threads, custom_ops=options.custom_ops)
    found = find_rollout(opened.inputs, opened.outputs, options.state, options.steps)
    rollout = None if found is None else found.of_decoder(specs)
    with Progress(quiet=quiet or as_json, verbose=verbose) as progress, scratch_folder() as work:
        progress.stage("check")
        exact, artifact, selected = exposed_pair(float_model, loaded, other, work)
        result = judge(
            exact,
            artifact,
            list(feeds),
            Limits(
                min_speedup=options.min_speedup,
                max_drop=options.max_drop,
                min_sqnr=options.min_sqnr,
                max_latency_ms=options.max_latency,
                max_bytes=options.max_size,
            ),
            metric=make_metric(options, specs, feeds, calibrated=False),
            names=feeds.names,
            rollout=rollout,
            selected=selected,
            threads=options.threads,
            budget_s=options.gate_time,
            custom_ops=options.custom_ops,
            progress=lambda _, share: progress.advance(share, 1.0),
        )
    if as_json:
        print_json(result.to_dict())
        return result.exit_code
    for check in result.checks:
        print(check_line(check.state, check.name, check.text))
    for note in (*selected.findings(), *result.notes):
        print(f"  note: {note}")
    if feeds.random:
        print("warning: judged on random data; pass --calibration")
    print(result.headline)
    return result.exit_code
