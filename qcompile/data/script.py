"""Functions of the user's own scripts: FILE.py:FUNCTION."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from qcompile.ir.errors import QCompileError

__all__ = ["beside", "load_function"]


def load_function(
    path: Path, name: str, option: str, needed: str, error: type[QCompileError]
) -> Callable[..., Any]:
    """Import ``path`` and return its function ``name``.

    Args:
        path: the script; its folder is importable while it is read.
        name: of the function.
        option: of the command line, for messages.
        needed: what the function takes and returns, for messages.
        error: what to raise.

    Raises:
        QCompileError: of the class ``error``: no such script, no such function, or the script raised.
    """
    if not path.is_file():
        raise error(f"{option}: script '{path}' does not exist")
    spec = importlib.util.spec_from_file_location(f"qcompile_user_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise error(f"{option}: '{path}' cannot be imported")
    module = importlib.util.module_from_spec(spec)
    with beside(path):
        try:
            spec.loader.exec_module(module)
        except Exception as e:  # the user's own code may raise anything
            raise error(f"{option}: importing '{path}' raised {type(e).__name__}: {e}") from e
    function: Callable[..., Any] | None = getattr(module, name, None)
    if not callable(function):
        raise error(
            f"{option}: '{path}' has no function '{name}'; write {path.name}:FUNCTION, {needed}"
        )
    return function


@contextmanager
def beside(path: Path) -> Iterator[None]:
    """Modules beside the script can be imported."""
    folder = str(path.resolve().parent)
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)
