"""`qcompile demo`: a real model, compiled and scored with what lies inside the package."""

from __future__ import annotations

from pathlib import Path

import click

from qcompile.cli.flags import SETTINGS, json_flag, verbosity_flags

__all__ = ["command"]


@click.command("demo", context_settings=SETTINGS)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="Folder to write [fmnist_dwcnn.ort-int8].",
)
@json_flag
@verbosity_flags
def command(output: Path | None, as_json: bool, verbose: bool, quiet: bool) -> int:
    r"""Compile a small Fashion-MNIST network and print top-1, speed and size before and after.

    \b
    qcompile demo
    qcompile demo --output /somewhere/else
    """
    from qcompile.cli.output import Progress, print_json
    from qcompile.demo import run_demo

    def say(text: str) -> None:
        if not as_json:
            print(text, flush=True)

    with Progress(quiet=quiet or as_json, verbose=verbose) as progress:
        done = run_demo(output, say=say, reporter=progress)
    result = done.result
    if as_json:
        print_json(
            {
                "verdict": result.verdict,
                "headline": result.report.data["headline"],
                "gate": result.report.data["gate"],
                "seconds": done.seconds,
                "output": str(result.path),
            }
        )
    else:
        print("\n".join(done.lines()))
    return result.exit_code
