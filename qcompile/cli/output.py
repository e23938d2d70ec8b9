"""What people and pipelines see: live progress on a terminal, plain lines in a pipe, four formats."""

from __future__ import annotations

import json
import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Any
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

from qcompile.verdict import FAIL, PASS, to_jsonable

if TYPE_CHECKING:
    from qcompile.result import CompileResult

__all__ = ["FORMATS", "Progress", "check_line", "print_json", "write_outcome"]

FORMATS = ("text", "json", "github", "junit")


class Progress:
    """Shows stages: a bar with the time left on a terminal; in a pipe nothing, or a line a stage.

    Attributes:
        current: the stage that runs, "" before the first.
    """

    def __init__(self, quiet: bool = False, verbose: bool = False) -> None:
        self._console = Console(stderr=True, quiet=quiet)
        self._live = self._console.is_terminal and not quiet
        self._verbose = verbose
        self._bars = Bars(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._live,
            transient=True,
        )
        self._task = self._bars.add_task("", total=None, visible=False)
        self.current = ""
        self._since = self._begun = time.perf_counter()

    def __enter__(self) -> Progress:
        """Start the display."""
        if self._live:
            self._bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop the display, also on an error; an interruption learns which stage it met."""
        if self._live:  # rich 13.0 writes a line's end also where it is disabled
            self._bars.stop()
        if isinstance(error, KeyboardInterrupt):
            error.stage = (self.current, time.perf_counter() - self._begun)  # type: ignore[attr-defined]
        elif error is None:
            self._finish()

    def stage(self, name: str) -> None:
        """Begin a stage."""
        self._finish()
        self.current, self._since = name, time.perf_counter()
        if self._live:
            self._bars.reset(self._task, total=None, description=name, visible=True)

    def part(self, name: str) -> None:
        """Begin a part of the stage, with a time of its own."""
        if self._live:
            text = f"{self.current}: {name}" if name else self.current
            self._bars.reset(self._task, total=None, description=text, visible=True)

    def _finish(self) -> None:
        if self._verbose and self.current:
            seconds = time.perf_counter() - self._since
            self._console.print(f"{self.current}: {seconds:.1f} s", highlight=False, markup=False)

    def advance(self, done: float, total: float | None) -> None:
        """Tell how far the stage is."""
        if self._live:
            self._bars.update(self._task, completed=done, total=total)

    def note(self, text: str) -> None:
        """Say one thing worth knowing, once."""
        if self._live or self._verbose:
            self._console.print(f"  {text}", highlight=False, markup=False)


def print_json(data: Any) -> None:
    """Deterministic JSON on standard output; infinite and missing numbers are null."""
    print(json.dumps(to_jsonable(data), indent=1, sort_keys=True, ensure_ascii=False))


def check_line(state: str, name: str, text: str) -> str:
    """One line for one thing that was checked.

    >>> check_line("pass", "opens", "ONNX Runtime opens it")
    '  ok    opens: ONNX Runtime opens it'
    """
    word = {PASS: "ok", FAIL: "FAIL", "inconclusive": "vague"}.get(state, state)
    return f"  {word:<4}  {name}: {text}"


def write_outcome(
    result: CompileResult, output_format: str, quiet: bool, verbose: bool = False
) -> None:
    """Print the result to standard output in one of ``FORMATS``; ``verbose`` adds where time went."""
    if output_format == "json":
        print(result.report.to_json(), end="")
        return
    text = "\n".join(result.headlines()) if quiet else result.summary()
    if verbose and not quiet:
        text = "\n".join([*result.report.timing_lines(), text])
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
