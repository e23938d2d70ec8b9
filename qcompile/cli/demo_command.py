"""`qcompile demo`: a real model, compiled and scored with what lies inside the package."""

from __future__ import annotations

from pathlib import Path

import click

from qcompile.cli.flags import SETTINGS

__all__ = ["command"]


@click.command("demo", context_settings=SETTINGS)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="Folder to write [fmnist_dwcnn.ort-int8].",
)
def command(output: Path | None) -> int:
    r"""Compile a small Fashion-MNIST network and print top-1, speed and size before and after.

    \b
    qcompile demo
    qcompile demo --output /somewhere/else
    """
    from qcompile.demo import run_demo

    return run_demo(output)
