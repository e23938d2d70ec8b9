"""Builds the wheel and uses it as a stranger would: elsewhere, installed, without a network.

The wheel is made from the source archive (so that both are complete), installed into a new
environment outside the clone, and `qcompile demo` runs there from a folder that holds nothing.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# Put into the new environment as a .pth file, so that every process started from it has it too.
NO_NETWORK = """
import socket
def _refuse(*args, **kwargs):
    raise OSError("this test runs without a network")
socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = _refuse
"""


def run(*command: str | Path, cwd: Path, quiet: bool = False) -> None:
    """Runs it and ends this script with its exit code when it fails; quiet: output only then."""
    print("$", *command, flush=True)
    keep = {k: v for k, v in os.environ.items() if k not in {"PYTHONPATH", "VIRTUAL_ENV"}}
    into = subprocess.PIPE if quiet else None
    done = subprocess.run(
        [str(c) for c in command],
        cwd=cwd,
        check=False,
        env=keep,
        text=True,
        stdout=into,
        stderr=subprocess.STDOUT if quiet else None,
    )
    if done.returncode:
        print(done.stdout or "", file=sys.stderr)
        raise SystemExit(done.returncode)


def main() -> int:
    """0 when the demo delivered."""
    with tempfile.TemporaryDirectory(prefix="qcompile-wheel-") as name:
        there = Path(name)
        env, dist, empty = there / "venv", there / "dist", there / "empty"
        empty.mkdir()
        venv.create(env, with_pip=True)
        bin_folder = env / ("Scripts" if os.name == "nt" else "bin")
        python = bin_folder / "python"
        run(python, "-m", "pip", "install", "--quiet", "build>=1.2", cwd=there)
        run(python, "-m", "build", "--outdir", dist, ROOT, cwd=there, quiet=True)
        (wheel,) = dist.glob("*.whl")
        print(f"{wheel.name}: {wheel.stat().st_size:,} bytes")
        if lacking := expected() - set(zipfile.ZipFile(wheel).namelist()):
            print(f"the wheel lacks {', '.join(sorted(lacking))}", file=sys.stderr)
            return 1
        run(python, "-m", "pip", "install", "--quiet", f"{wheel}[cpu]", cwd=there)
        run(python, "-m", "pip", "uninstall", "--quiet", "--yes", "build", cwd=there)
        probe = "import sysconfig; print(sysconfig.get_paths()['purelib'])"
        out = subprocess.run([python, "-c", probe], capture_output=True, text=True, check=True)
        site = Path(out.stdout.strip())
        (site / "no_network_for_this_test.py").write_text(NO_NETWORK, encoding="utf-8")
        (site / "no_network.pth").write_text("import no_network_for_this_test\n", encoding="utf-8")
        command: list[str | Path] = [bin_folder / "qcompile", "demo"]
        if unshare := cut_off():
            command = [*unshare, *command]
        run(*command, cwd=empty)
        # What was delivered runs by itself and gives the outputs stored beside it.
        (deployed,) = empty.glob("*/deploy/run.py")
        run(python, deployed, cwd=there)
    return 0


def expected() -> set[str]:
    """The names that every module of the clone has inside the wheel."""
    names = set()
    for folder in ("qcompile", "passes", "calibrators", "backends"):
        for path in (ROOT / folder).rglob("*.py"):
            if not any(p.is_symlink() for p in path.parents):
                name = path.relative_to(ROOT).as_posix()
                names.add(name if folder == "qcompile" else f"qcompile/{name}")
    data = ("__init__.py", "fetch.py", "zoo.toml", "fmnist_dwcnn.onnx", "fmnist_test.npz")
    names |= {f"qcompile/models/{name}" for name in data}
    return names | {
        "qcompile/py.typed",
        "qcompile/report.schema.json",
        "qcompile/deploy/run.py",
        "qcompile/deploy/main.cc",
    }


def cut_off() -> list[str | Path]:
    """The prefix that starts a command in a network of its own, where the system allows it."""
    unshare = shutil.which("unshare")
    if unshare is None:
        return []
    prefix: list[str | Path] = [unshare, "--map-root-user", "--net"]
    works = subprocess.run([*prefix, sys.executable, "-c", ""], capture_output=True, check=False)
    return prefix if works.returncode == 0 else []


if __name__ == "__main__":
    raise SystemExit(main())
