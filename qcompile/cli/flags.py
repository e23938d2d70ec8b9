"""Options that several commands share, and the settings of every command."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

__all__ = ["SETTINGS", "data_flags", "json_flag", "path_argument", "verbosity_flags"]

SETTINGS: dict[str, Any] = {"help_option_names": ["-h", "--help"], "max_content_width": 110}

F = TypeVar("F", bound=Callable[..., Any])


def json_flag(function: F) -> F:
    """``--json``."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON.")(function)


def verbosity_flags(function: F) -> F:
    """``-v`` and ``-q``."""
    function = click.option(
        "-q", "--quiet", is_flag=True, help="No progress, only the last lines."
    )(function)
    return click.option("-v", "--verbose", is_flag=True, help="A line for each stage and note.")(
        function
    )


def data_flags(function: F) -> F:
    """Where samples come from."""
    function = click.option("--custom-ops", type=click.Path(path_type=Path), help="Library.")(
        function
    )
    function = click.option("--preprocess", help="Images: preset or recipe.")(function)
    return click.option(
        "-c", "--calibration", help="Samples: folder, .npz, .npy, file.py:function."
    )(function)


def path_argument(name: str, **more: Any) -> Callable[[F], F]:
    """A model's file or an artifact's folder."""
    return click.argument(name, type=click.Path(path_type=Path), **more)
