"""Runs all tests on the oldest supported Python with the oldest supported packages (floor.txt).

Where no such Python can be found it says so and succeeds: a contributor need not have one.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VERSION = (3, 10)
FOLDER = ROOT / ".venv-floor"


def candidates() -> list[list[str]]:
    """Commands that may start the wanted Python, likeliest first."""
    dotted = ".".join(map(str, VERSION))
    found = [[path] for name in (f"python{dotted}", "python3") if (path := shutil.which(name))]
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    found += [[str(p)] for p in sorted(pyenv.glob(f"versions/{dotted}.*/bin/python"), reverse=True)]
    if launcher := shutil.which("py"):
        found.append([launcher, f"-{dotted}"])
    return found


def works(command: list[str]) -> bool:
    """Whether it starts at all (a version manager's shim may not) and is the wanted version."""
    probe = [*command, "-c", "import sys; print(sys.version_info[0], sys.version_info[1])"]
    try:
        done = subprocess.run(probe, capture_output=True, text=True, timeout=60, check=False)
    except OSError:
        return False
    return done.returncode == 0 and done.stdout.split() == [str(v) for v in VERSION]


def main() -> int:
    """The exit code of pytest there, or 0 when there is no such Python."""
    command = next((c for c in candidates() if works(c)), None)
    if command is None:
        print(f"floor-test skipped: no Python {VERSION[0]}.{VERSION[1]} on PATH or under pyenv")
        return 0
    python = FOLDER / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    shutil.rmtree(FOLDER, ignore_errors=True)
    floor = str(ROOT / ".ci" / "floor.txt")
    steps = [
        [*command, "-m", "venv", str(FOLDER)],
        [str(python), "-m", "pip", "install", "--quiet", "-c", floor, "-e", ".[cpu,text,test]"],
        [str(python), "-m", "pytest", "-n", "auto", "--dist", "loadfile"],
    ]
    for step in steps:
        print("$", *step, flush=True)
        if code := subprocess.run(step, cwd=ROOT, check=False).returncode:
            return code
    return 0


if __name__ == "__main__":
    sys.exit(main())
