"""A tool in a process of its own: seconds, processor time and peak memory with all its children, and why it
failed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

LOOK_EVERY = 0.05  # seconds between looks at the memory; a look takes one millisecond
TOLD = 160  # characters of a message that a table has room for

KEYS = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
"""What would show another interpreter this one's packages."""


@dataclass(frozen=True)
class Ran:
    """How a process ended.

    Attributes:
        code: exit code; below zero a signal's number.
        text: everything that it printed.
        ended: it took too long and was ended.
        processor_s: user and system time of it and the children that it waited for.
    """

    code: int
    text: str
    seconds: float
    peak_mb: float
    ended: bool = False
    processor_s: float = 0.0

    def fault(self) -> str:
        """What it said was wrong, else its last line."""
        if self.ended:
            return f"not done after {self.seconds:.0f} s"
        lines = [line.strip() for line in self.text.splitlines() if line.strip()]
        told = [line for line in lines if line.startswith(("NOT ", "error:"))]
        if told:
            return told[-1][:TOLD]
        if self.code < 0:
            return f"crashed ({_signal(-self.code)})"
        return lines[-1][:TOLD] if lines else f"exit code {self.code} without a word"


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def run_watched(
    command: list[str], limit_s: float, log: Path | None = None, cwd: Path | None = None
) -> Ran:
    """Run a tool; it is ended with its children after ``limit_s``; ``log`` keeps what it printed."""
    peak = 0
    ended = threading.Event()
    before = _waited_for()
    env = clean_environment(command[0])
    start = time.perf_counter()
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as out:
        process = psutil.Popen(command, stdout=out, stderr=subprocess.STDOUT, env=env, cwd=cwd)
        timer = threading.Timer(limit_s, _end, [process, ended])
        timer.start()
        while process.poll() is None:
            peak = max(peak, _resident(process))
            time.sleep(LOOK_EVERY)
        timer.cancel()
        seconds = time.perf_counter() - start
        out.seek(0)
        text = out.read()
    if log is not None:
        log.write_text(text, encoding="utf-8", newline="\n")
    spent = _waited_for() - before
    return Ran(process.returncode, text, seconds, peak / 1e6, ended.is_set(), spent)


def clean_environment(python: str) -> dict[str, str]:
    """This environment; for another interpreter without what belongs to this one."""
    own = python == sys.executable
    return {k: v for k, v in os.environ.items() if own or k not in KEYS}


def _waited_for() -> float:
    """Processor seconds of all children of this process that have ended."""
    spent = os.times()
    return spent.children_user + spent.children_system


def _end(process: psutil.Popen, ended: threading.Event) -> None:
    ended.set()
    for one in [*process.children(recursive=True), process]:
        try:
            one.kill()
        except psutil.NoSuchProcess:
            continue


def _resident(process: psutil.Popen) -> int:
    total = 0
    try:
        for one in [process, *process.children(recursive=True)]:
            total += one.memory_info().rss
    except psutil.NoSuchProcess:  # ended just now
        return total
    return total
