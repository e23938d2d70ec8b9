"""`qcompile profile SOURCE`: measure costs on this machine for a compile here or elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from qcompile.cli.flags import SETTINGS, json_flag, path_argument
from qcompile.cli.output import Progress, print_json
from qcompile.ir.errors import OutputError
from qcompile.options import make_options

__all__ = ["command"]


@click.command("profile", context_settings=SETTINGS)
@path_argument("source")
@click.option("-t", "--target", help="Capability table [ort-int8].")
@click.option("-c", "--calibration", help="Samples [an artifact's own]: folder, .npz, .npy, ...")
@click.option("--preprocess", help="Images: preset or recipe.")
@click.option("--threads", type=int, help="As deployed [the runtime's default].")
@click.option("--batch", type=int, help="Samples in a call [as the data have it].")
@click.option("--time", "seconds", default="20s", show_default=True, help="For the measurement.")
@click.option("--custom-ops", help="Library with custom operators.")
@click.option("--memory-limit", help="For example 4GB.")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    default=Path("costs.json"),
    show_default=True,
    help="File to write.",
)
@click.option("-q", "--quiet", is_flag=True, help="Only the name of the file.")
@json_flag
def command(
    source: Path,
    seconds: str,
    batch: int | None,
    output: Path,
    quiet: bool,
    as_json: bool,
    **given: Any,
) -> int:
    r"""Measure what each layer of SOURCE costs in each form, and each conversion, on this machine.

    SOURCE is a float model, or the folder of an artifact (which holds all that is needed).

    \b
    qcompile profile model.onnx -c data/ --threads 4 -o costs.json     # on the device
    qcompile model.onnx -c data/ --costs costs.json                    # anywhere
    """
    from qcompile.profiling import profile
    from qcompile.units import parse_seconds

    options = make_options(**given)
    with Progress(quiet=quiet or as_json) as progress:
        progress.stage("profile")
        costs = profile(
            source,
            options,
            batch=batch,
            seconds=parse_seconds(seconds, "--time"),
            progress=lambda share: progress.advance(share, 1.0),
        )
    try:
        output.write_text(costs.to_json(), encoding="utf-8", newline="\n")
    except OSError as e:
        raise OutputError(f"'{output}' cannot be written ({e.strerror or e}); give -o") from e
    if as_json:
        totals = dict(costs.totals_ns)
        print_json({"output": str(output), "measured": costs.text(), "totals_ns": totals})
        return 0
    if not quiet:
        print(costs.text())
        for name, ns in costs.totals_ns.items():
            print(f"  {name}: {ns / 1e6:.3f} ms")
    print(f"wrote {output}")
    return 0
