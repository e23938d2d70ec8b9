"""What people and pipelines see: live progress on a terminal, plain lines in a pipe, four formats."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import TYPE_CHECKING
from xml.sax.saxutils import escape, quoteattr

from rich.console import Console
from rich.progress import (
    BarColumn,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bars

from qcompile.verdict import FAIL, PASS

if TYPE_CHECKING:
    from qcompile.result import CompileResult

__all__ = ["FORMATS", "Progress", "write_outcome"]

FORMATS = ("text", "json", "github", "junit")


class Progress:
    """Shows stages: a bar with the time left on a terminal, one plain line a stage elsewhere."""

    def __init__(self, quiet: bool = False) -> None:
        self._console = Console(stderr=True, quiet=quiet)
        self._live = self._console.is_terminal and not quiet
        self._bars = Bars(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._live,
            transient=True,
        )
        self._task = self._bars.add_task("", total=None, visible=False)

    def __enter__(self) -> Progress:
        """Start the display."""
        self._bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop the display, also on an error."""
        self._bars.stop()

    def stage(self, name: str) -> None:
        """Begin a stage."""
        if self._live:
            self._bars.reset(self._task, total=None, description=name, visible=True)
        else:
            self._console.print(f"{name} ...", highlight=False)

    def advance(self, done: float, total: float | None) -> None:
        """Tell how far the stage is."""
        if self._live:
            self._bars.update(self._task, completed=done, total=total)

    def note(self, text: str) -> None:
        """Say one thing worth knowing, once."""
        self._console.print(f"  {text}", highlight=False, markup=False)


def write_outcome(result: CompileResult, output_format: str, quiet: bool) -> None:
    """Print the result to standard output in one of ``FORMATS``."""
    if output_format == "json":
        print(result.report.to_json(), end="")
        return
    text = "\n".join(result.headlines()) if quiet else result.summary()
    if output_format == "github":
        kind = {0: "notice", 3: "error"}.get(result.exit_code, "warning")
        print(text)
        print(f"::{kind} title=qcompile::{'%0A'.join(result.headlines())}")
    elif output_format == "junit":
        print(_junit(result))
    else:
        print(text)
    sys.stdout.flush()


def _junit(result: CompileResult) -> str:
    """One test case for every number that the gate looks at."""
    checks = result.report.data["gate"]["checks"]
    cases = []
    for check in checks:
        body = ""
        if check["state"] == FAIL:
            body = f"<failure message={quoteattr(check['text'])}/>"
        elif check["state"] != PASS:
            body = f"<skipped message={quoteattr(check['text'])}/>"
        cases.append(
            f"  <testcase classname='qcompile' name={quoteattr(check['name'])}>{body}</testcase>"
        )
    failures = sum(c["state"] == FAIL for c in checks)
    head = f"<testsuite name='qcompile' tests='{len(checks)}' failures='{failures}'>"
    out = escape("\n".join(result.headlines()))
    return "\n".join([head, *cases, f"  <system-out>{out}</system-out>", "</testsuite>"])
