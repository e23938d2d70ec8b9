"""The second stage of an artifact for TensorRT: build, verify and time it on this GPU, complete the report.

The work is that of the artifact's own ``deploy/device.py``, in a process of its own, so that what someone
without qcompile does on the device and what this does are one and the same.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qcompile.artifact import MANIFEST, file_sha256, open_artifact
from qcompile.ir.errors import BackendMissingError, OptionError
from qcompile.verdict import DELIVERED, NOT_DELIVERED, NOT_MEASURED

__all__ = ["EngineRun", "complete", "run_engine"]

RESULT = "device.json"
_EXIT = {DELIVERED: 0, NOT_MEASURED: 0, NOT_DELIVERED: 3}


@dataclass(frozen=True)
class EngineRun:
    """What the device said.

    Attributes:
        verdict: "delivered", "not delivered" or "not measured".
        headline: the sentence that stands in the report now.
        exit_code: 0, or 3 where it is not delivered.
        result: device.json.
    """

    verdict: str
    headline: str
    exit_code: int
    result: dict[str, Any]


def run_engine(folder: Path, arguments: Sequence[str] = ()) -> EngineRun:
    """Run ``deploy/device.py`` of an artifact and write its verdict into report and manifest.

    Args:
        folder: the artifact.
        arguments: further ones of device.py (``--workspace``, ``--refit``, ...).

    Raises:
        OutputError: no artifact.
        OptionError: one that has no second stage, or that was changed since it was written.
        BackendMissingError: no TensorRT or no GPU here; the artifact stays as it was.
    """
    artifact = open_artifact(folder)
    script = folder / "deploy" / "device.py"
    if not script.is_file():
        raise OptionError(
            f"'{folder}' has no deploy/device.py: it is for {artifact.manifest.get('target')}, whose "
            "runtime needs no engine, or nothing was delivered"
        )
    changed = artifact.damaged()
    if changed:
        raise OptionError(f"'{folder}' was changed since it was written: {', '.join(changed)}")
    result = folder / RESULT
    command = [sys.executable, str(script), "--json", str(result), *arguments]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    said = [line for line in (run.stdout + run.stderr).splitlines() if line.strip()]
    if run.returncode == 4:
        raise BackendMissingError(
            f"{said[-1] if said else 'no device'}; the artifact stays as it is"
        )
    if run.returncode not in (0, 3) or (run.returncode == 0 and not result.is_file()):
        last = said[-1] if said else f"exit code {run.returncode}"
        raise BackendMissingError(f"deploy/device.py failed: {last[:300]}")
    if run.returncode == 3 and not result.is_file():
        return complete(folder, {"verdict": NOT_DELIVERED}, said[-1])
    content = json.loads(result.read_text(encoding="utf-8"))
    return complete(folder, content, said[-1])


def complete(folder: Path, found: dict[str, Any], said: str, key: str = "device_run") -> EngineRun:
    """Write what the device found into report and manifest; all other files stay as they are.

    Args:
        folder: the artifact.
        found: what was measured; "verdict" is one of it.
        said: the sentence for people.
        key: where the report keeps it.
    """
    verdict = str(found["verdict"])
    headline = said if said.startswith(verdict.upper()) else f"{verdict.upper()}: {said}"
    code = _EXIT[verdict]
    path = folder / "report.json"
    report = json.loads(path.read_text(encoding="utf-8"))
    report |= {"verdict": verdict, "headline": headline, "exit_code": code, key: found}
    _write(path, report)
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    manifest["verdict"] = verdict
    for name in ("report.json", RESULT, "model.engine"):
        if (folder / name).is_file():
            manifest["files"][name] = file_sha256(folder / name)
    _write(folder / MANIFEST, manifest)
    return EngineRun(verdict, headline, code, found)


def _write(path: Path, content: dict[str, Any]) -> None:
    text = json.dumps(content, indent=1, sort_keys=True) + "\n"
    path.write_text(text, encoding="utf-8", newline="\n")
