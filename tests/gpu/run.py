"""Runs tests/gpu unattended and prints the figures of every engine; exit code as pytest's.

    python tests/gpu/run.py [--results FOLDER]

Needs a GPU, `pip install -e '.[cpu,test]'` and tensorrt or tensorrt-rtx. Nothing is installed or asked.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent


def main() -> int:
    """Run pytest, then show what the device said."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path)
    args = parser.parse_args()
    folder = args.results or Path(tempfile.mkdtemp(prefix="qcompile-gpu-"))
    folder.mkdir(parents=True, exist_ok=True)
    tool = shutil.which("nvidia-smi")
    if tool is not None:
        query = "--query-gpu=name,compute_cap,driver_version,memory.total"
        subprocess.run([tool, query, "--format=csv"], check=False)
    command = [sys.executable, "-m", "pytest", "-rs", "-v", str(HERE)]
    environment = {**os.environ, "QCOMPILE_GPU_RESULTS": str(folder.resolve())}
    code = subprocess.run(command, check=False, env=environment, cwd=HERE.parents[1]).returncode
    for path in sorted(folder.glob("*.json")):
        found = json.loads(path.read_text(encoding="utf-8"))
        times = ", ".join(f"{name} {ms:.3f} ms" for name, ms in found["p50_ms"].items())
        exact = found["accuracy_db"]  # None: nothing differs
        accuracy = "equal" if exact is None else f"{exact:.1f} dB"
        print(
            f"{path.stem}: {times}; {accuracy} to float, kernels {found['kernels']}, "
            f"{found['library']} {found['tensorrt']} on {found['gpu']}"
        )
    return code


if __name__ == "__main__":
    sys.exit(main())
