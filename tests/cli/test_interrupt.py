"""Ctrl-C: exit code 130, nothing half-written, and a line that says how to go on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from tests.cli.conftest import write_model

LISTENING = """import runpy, signal
signal.signal(signal.SIGINT, signal.default_int_handler)
runpy.run_module("qcompile", run_name="__main__")"""
"""Hears Ctrl-C even where whoever runs the tests was started in the background, deaf to it."""


@pytest.mark.skipif(sys.platform == "win32", reason="a console there sends it to the whole group")
def test_an_interrupted_compile_goes_on_from_what_was_done(built: Path, tmp_path: Path) -> None:
    model = write_model(tmp_path / "net.onnx")
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    command = [sys.executable, "-c", LISTENING, str(model), "-c", str(built / "data"), "-v"]
    command += ["-o", str(tmp_path / "out")]
    run = subprocess.Popen(
        [*command, "--gate-time", "60s", "--search-time", "60s"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(scratch)},
        cwd=tmp_path,
    )
    assert run.stderr is not None
    for line in run.stderr:
        if line.startswith("learn:"):
            break
    time.sleep(0.3)
    run.send_signal(signal.SIGINT)
    said = run.communicate()[1]
    assert run.returncode == 130, said
    assert "interrupted in stage" in said
    assert "takes calibrate, even out, learn" in said and "'.out.progress'" in said
    assert sorted(p.name for p in tmp_path.iterdir()) == [".out.progress", "net.onnx", "scratch"]
    assert [p.name for p in scratch.iterdir() if p.name.startswith("qcompile")] == []

    again = subprocess.run(
        [*command, "--gate-time", "500ms", "--search-time", "1s"],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert again.returncode in (0, 3), again.stderr  # speed is not what this is about
    for stage in ("calibrate", "even out", "learn"):
        assert f"{stage}: taken from the interrupted compile" in again.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == ["net.onnx", "out", "scratch"]


def test_a_pipe_stays_quiet(built: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [
            *(sys.executable, "-m", "qcompile", "verify", str(built / "net.ort-int8")),
            *("--gate-time", "500ms"),
        ],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "NO_COLOR": "1", "TMPDIR": tempfile.gettempdir()},
    )
    assert done.returncode == 0
    assert done.stderr == "" and "\x1b" not in done.stdout
