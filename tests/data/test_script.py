"""Functions of the user's scripts: found, or refused in words that name option, file and need."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from qcompile.data.script import load_function
from qcompile.ir.errors import OptionError

NEEDED = "a function (run) -> float"


def test_a_script_imports_what_lies_beside_it(tmp_path: Path) -> None:
    (tmp_path / "beside_it.py").write_text("VALUE = 7\n")
    script = tmp_path / "mine.py"
    script.write_text("import beside_it\n\n\ndef score():\n    return beside_it.VALUE\n")
    path = list(sys.path)
    assert load_function(script, "score", "--metric", NEEDED, OptionError)() == 7
    assert sys.path == path


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, r"--metric: script '.*mine\.py' does not exist"),
        (
            "x = 1\n",
            r"--metric: '.*mine\.py' has no function 'score'; write mine\.py:FUNCTION, a fun",
        ),
        ("score = 3\n", "has no function 'score'"),
        ("1 / 0\n", r"--metric: importing '.*mine\.py' raised ZeroDivisionError"),
        ("def score(:\n", "raised SyntaxError"),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, text: str | None, message: str) -> None:
    script = tmp_path / "mine.py"
    if text is not None:
        script.write_text(text)
    path = list(sys.path)
    with pytest.raises(OptionError, match=message):
        load_function(script, "score", "--metric", NEEDED, OptionError)
    assert sys.path == path
