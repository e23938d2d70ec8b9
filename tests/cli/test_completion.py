"""The completion scripts in the shells themselves, where they are installed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from qcompile.cli import main

Capture = pytest.CaptureFixture[str]

BASH = """
source {script}
compopt() {{ :; }}
COMP_WORDS=({words})
COMP_CWORD={last}
_qcompile_completion qcompile
echo "${{COMPREPLY[@]}}"
"""

FISH = """
source {script}
complete -C "{words}"
"""

CASES = [
    ("qcompile ben", "bench"),
    ("qcompile bench --sec", "--seconds"),
    ("qcompile x.onnx --target tensorrt-i", "tensorrt-int8"),
    ("qcompile targets ort-int4", "ort-int4"),
    ("qcompile bert", "bert.onnx"),
]


@pytest.mark.skipif(sys.platform == "win32", reason="shells of POSIX")
@pytest.mark.parametrize("shell", ["bash", "fish"])
def test_a_shell_completes(shell: str, tmp_path: Path, capsys: Capture) -> None:
    program = shutil.which(shell)
    if program is None:
        pytest.skip(f"no {shell} on this machine")
    assert main(["completion", shell]) == 0
    (tmp_path / "script").write_text(capsys.readouterr().out, encoding="utf-8")
    (tmp_path / "bert.onnx").touch()
    command = tmp_path / "bin" / "qcompile"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m qcompile "$@"\n', encoding="utf-8")
    command.chmod(0o755)
    root = str(Path(__file__).parents[2])
    env = {
        **os.environ,
        "PATH": f"{command.parent}:{os.environ['PATH']}",
        "PYTHONPATH": root,
        "HOME": str(tmp_path),
    }
    template = BASH if shell == "bash" else FISH
    for words, expected in CASES:
        script = template.format(
            script=tmp_path / "script", words=words, last=len(words.split()) - 1
        )
        done = subprocess.run(
            [program, "-c", script],
            capture_output=True,
            text=True,
            check=True,
            cwd=tmp_path,
            env=env,
        )
        assert expected in done.stdout.split(), (words, done.stdout, done.stderr)
