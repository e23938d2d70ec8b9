"""Names of targets and devices as types of arguments: shells complete them, mistakes are suggested."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import click
from click.shell_completion import CompletionItem

__all__ = ["DEVICE", "TARGET"]


class _Name(click.ParamType):  # type: ignore[type-arg]  # generic in newer releases only
    """Any text: whether it is one of the names is checked, with the nearest, where it is used."""

    def __init__(self, name: str, known: Callable[[], Iterable[str]]) -> None:
        self.name = name
        self._known = known

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """The names that begin so."""
        return [CompletionItem(n) for n in self._known() if n.startswith(incomplete)]

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The text itself."""
        return str(value)


def _targets() -> Iterable[str]:
    from qcompile.backends.tables import target_names

    return target_names()


def _devices() -> Iterable[str]:
    from qcompile.backends.devices import device_names
    from qcompile.backends.devices_gpu import gpu_names

    return dict.fromkeys((*device_names(), *gpu_names()))


TARGET = _Name("target", _targets)
DEVICE = _Name("device", _devices)
