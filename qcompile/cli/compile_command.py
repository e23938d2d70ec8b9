"""`qcompile MODEL`: compile, print what was delivered and why, exit with the verdict's code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from qcompile.cli.flags import SETTINGS, verbosity_flags
from qcompile.cli.names import DEVICE, TARGET
from qcompile.cli.output import FORMATS, Progress, write_outcome
from qcompile.options import (
    ALGORITHMS,
    CACHES,
    EFFORTS,
    METHODS,
    PREFERENCES,
    REQUIREMENTS,
    make_options,
    read_toml,
)
from qcompile.techniques import TECHNIQUES

__all__ = ["command"]


@click.command(
    "compile",
    context_settings=SETTINGS,
    epilog="Exit codes: 0 delivered (or not measured, or inconclusive), 2 bad input, 3 gate not met, "
    "4 runtime or hardware missing, 1 internal error.",
)
@click.argument("model", type=click.Path(path_type=Path), required=False)
@click.option(
    "-t",
    "--target",
    type=TARGET,
    help="Capability table [ort-int8]; `qcompile targets` lists them.",
)
@click.option(
    "--device",
    type=DEVICE,
    help="Row of devices: native (default), x86-avx2, x86-vnni, arm64-dotprod, ...",
)
@click.option(
    "-c", "--calibration", help="Folder, .npz, .npy, file.py:function or polygraphy JSON."
)
@click.option(
    "--preprocess", help='Images: preset or recipe ("resize=256,crop=224,rgb,scale=1/255").'
)
@click.option(
    "--samples", type=int, help="At most so many calibration samples [256]; a diverse subset."
)
@click.option("--method", type=click.Choice(METHODS), help="Range estimator [auto].")
@click.option(
    "--ranges",
    help="Reuse a ranges.npz instead of calibrating, a TensorRT calibration cache, or JSON with ranges.",
)
@click.option("--metric", help="top1, cer, ppl, or file.py:function (run) -> float.")
@click.option(
    "--metric-direction", type=click.Choice(["max", "min"]), help="Override the direction."
)
@click.option(
    "--eval-data", help="Samples for a built-in metric (other than the calibration data)."
)
@click.option("--labels", help="labels.csv: sample name,label.")
@click.option("--state", multiple=True, help="OUTPUT=INPUT that is fed back, or none [by names].")
@click.option("--steps", type=int, help="Calls in a row to judge where state is fed back [16].")
@click.option("--max-drop", help="Allowed loss of the metric: 1% (relative) or 0.5pt.")
@click.option(
    "--min-sqnr", type=float, help="Least SQNR of every float output in dB [10, off with --metric]."
)
@click.option("--min-speedup", type=float, help="Least ratio to the float model [1.0].")
@click.option("--max-latency", help="p50 limit, for example 5ms.")
@click.option("--max-size", help="Limit of the model file, for example 4MB.")
@click.option("-o", "--output", help="Folder to write [MODEL.TARGET].")
@click.option("--force", is_flag=True, default=None, help="Move a foreign output folder aside.")
@click.option(
    "--from", "base", help="Carry plan and estimators over from an earlier compile's folder."
)
@click.option("--plan", help="Follow this plan.json.")
@click.option(
    "--keep-float", multiple=True, help="Origin id or pattern that stays float; repeatable."
)
@click.option("--disable", multiple=True, help="Pass to skip; repeatable.")
@click.option(
    "--techniques",
    help=f"What is done for accuracy: all (default), none, names, or -name: {', '.join(TECHNIQUES)}.",
)
@click.option("--threads", type=int, help="Threads for costs and gate [the runtime's default].")
@click.option("--memory-limit", help="For example 4GB [all that is free].")
@click.option("--effort", type=click.Choice(EFFORTS), help="How long to search [default].")
@click.option("--seed", type=int, help="Of everything random [0].")
@click.option("--allow-random", is_flag=True, default=None, help="Accept random calibration data.")
@click.option("--custom-ops", help="Library with custom operators.")
@click.option(
    "--fix-weights/--no-fix-weights",
    default=None,
    help="Take weights that are also graph inputs as constants [if all are].",
)
@click.option(
    "--rest",
    type=click.Choice(["fp16", "bf16", "fp32"]),
    help="Type of what stays float [the target's].",
)
@click.option(
    "--prefer",
    type=click.Choice(PREFERENCES),
    help="Engines: fewest kernels, or most layers in 8 bits [balance].",
)
@click.option(
    "--shapes",
    multiple=True,
    help="Shapes to serve: NAME=MIN:OPT:MAX, each like 1x3x640x640 [the samples']; repeatable.",
)
@click.option("--opset", type=int, help="Pin the default-domain opset of the result.")
@click.option("--min-ort", help="Oldest ONNX Runtime that must open the result, for example 1.17.")
@click.option("--costs", help="Use this costs.json instead of measuring.")
@click.option("--search-time", help="Time for the search of a plan, for example 60s.")
@click.option("--gate-time", help="Time for timing in the gate [20s].")
@click.option(
    "--locked", is_flag=True, default=None, help="Replay qcompile.lock; fail if anything changed."
)
@click.option("--lock", help="The lock file [qcompile.lock here, or in the output folder].")
@click.option(
    "--require", multiple=True, type=click.Choice(REQUIREMENTS), help="Must hold for exit 0."
)
@click.option(
    "--strict", is_flag=True, default=None, help="A layer not realised as requested is an error."
)
@click.option(
    "--best-effort", is_flag=True, default=None, help="Deliver the fused float model if all fails."
)
@click.option(
    "--show",
    help="Worst samples of the report: boxes[=names.txt], text=letters.txt, classes=names.txt, or "
    "file.py:function.",
)
@click.option("--tokenizer", help="tokenizer.json, for --calibration and --eval-data text.txt.")
@click.option("--sequence", type=int, help="Tokens of a sample that is cut from text [128].")
@click.option(
    "--algorithm", type=click.Choice(ALGORITHMS), help="Weight-only targets: how to round [auto]."
)
@click.option("--bits", type=int, help="Weight-only targets: bits of a weight, 2, 3, 4 or 8.")
@click.option("--block", type=int, help="Weight-only targets: weights that share a scale.")
@click.option(
    "--kv-cache",
    type=click.Choice(CACHES),
    help="Weight-only targets: how a decoder keeps keys and values [float].",
)
@click.option(
    "--config", type=click.Path(path_type=Path), help="Read options from this qcompile.toml."
)
@click.option(
    "--output-format",
    type=click.Choice(FORMATS),
    default="text",
    help="text, json (report.json), github (an annotation of a workflow) or junit [text].",
)
@click.option("--json", "as_json", is_flag=True, help="Short for --output-format json.")
@verbosity_flags
def command(
    model: Path | None,
    config: Path | None,
    output_format: str,
    as_json: bool,
    quiet: bool,
    verbose: bool,
    **given: Any,
) -> int:
    r"""Compile MODEL and deliver it only if it is valid, as fast and as accurate as asked.

    \b
    qcompile model.onnx --target ort-int8 --calibration photos/ --preprocess imagenet
    qcompile model.onnx -c calib.npz --metric eval.py:top1 --max-drop 0.5pt -o build/
    """
    from qcompile.compiler import compile_with

    output_format = "json" if as_json else output_format
    found = config or (Path("qcompile.toml") if Path("qcompile.toml").is_file() else None)
    values = read_toml(found) if found is not None else {}
    values.update({k: v for k, v in given.items() if v is not None and v != ()})
    path = model or values.get("model")
    values.pop("model", None)
    if path is None:
        raise click.UsageError("give a MODEL.onnx to compile")
    options = make_options(**values)
    with Progress(quiet=quiet or output_format == "json", verbose=verbose) as progress:
        result = compile_with(Path(path), options, progress)
    write_outcome(result, output_format, quiet, verbose)
    return result.exit_code
