"""What need not be done again: an artifact that is up to date, and a lock to replay."""

from __future__ import annotations

import hashlib
import json
from dataclasses import fields
from pathlib import Path
from typing import Any

from qcompile.artifact import LOCK, file_sha256, open_artifact
from qcompile.environment import describe_versions
from qcompile.ir.errors import OutputError
from qcompile.ir.plan import PrecisionPlan
from qcompile.job import Data
from qcompile.lock import Lock
from qcompile.options import Options
from qcompile.prepare import Prepared
from qcompile.report import CompileReport
from qcompile.result import CompileResult
from qcompile.units import Drop

__all__ = ["fingerprint", "locked", "up_to_date"]

_NOT_IN_KEY = frozenset({"output", "force", "calibration", "eval_data", "locked", "lock"})
_GATE_ONLY = frozenset(
    {"metric", "metric_direction", "labels", "slices", "gate_time", "require", "strict"}
    | {"max_drop", "min_sqnr", "min_speedup", "max_latency", "max_size", "allow_random", "plan"}
    | {"state", "steps", "base"}
    | {"threads", "search_time", "effort", "costs", "ranges", "memory_limit", "best_effort", "show"}
)


def fingerprint(prepared: Prepared, data: Data, options: Options) -> dict[str, Any]:
    """What the result depends on, without paths: hashes of model and data, versions, options."""
    found: dict[str, Any] = {
        "model": prepared.loaded.sha256,
        "data": data.sha256,
        "target": prepared.target.name,
        "device": prepared.target.device,
        "versions": describe_versions(),
    }
    for field in fields(Options):
        value = getattr(options, field.name)
        if field.name not in _NOT_IN_KEY and value != field.default:
            found[f"option.{field.name}"] = _plain(value)
    return found


def _plain(value: Any) -> Any:
    """A value as JSON has it; files and scripts by their content, so that folders do not matter."""
    if isinstance(value, Path):
        whole = value / LOCK if value.is_dir() else value
        return file_sha256(whole) if whole.is_file() else value.name
    if isinstance(value, Drop):
        return str(value)
    if isinstance(value, PrecisionPlan):
        return hashlib.sha256(value.to_json().encode()).hexdigest()
    if isinstance(value, str):
        script = Path(value.rpartition(":")[0] or value)
        return f"{value}@{file_sha256(script)}" if script.is_file() else value
    if isinstance(value, (tuple, list)):
        return [_plain(v) for v in value]
    if callable(value):
        return f"python function {getattr(value, '__qualname__', 'metric')}"
    return value


def up_to_date(output: Path, key: dict[str, Any], options: Options) -> CompileResult | None:
    """The artifact that lies in ``output``, when it came from the same inputs and is undamaged.

    A metric given as a Python function has no hash, so such a compile is always done again.
    """
    if options.force or options.locked or callable(options.metric):
        return None
    try:
        artifact = open_artifact(output)
    except OutputError:
        return None
    if artifact.manifest.get("inputs") != json.loads(json.dumps(key)) or artifact.damaged():
        return None
    report = CompileReport(artifact.report)
    return CompileResult(report, output, int(report.data["exit_code"]), up_to_date=True)


def locked(options: Options, output: Path, key: dict[str, Any]) -> Lock | None:
    """The lock to replay with ``--locked``, checked against this compile's inputs.

    Raises:
        OptionError: no lock, or it belongs to other inputs.
    """
    if not options.locked:
        return None
    path = options.lock or (Path(LOCK) if Path(LOCK).is_file() else output / LOCK)
    lock = Lock.read(path)
    lock.check_inputs(byte_inputs(key), path)
    return lock


def byte_inputs(key: dict[str, Any]) -> dict[str, Any]:
    """The part of the fingerprint that the bytes depend on, once ranges and plan are fixed."""
    gate = {f"option.{name}" for name in _GATE_ONLY}
    return {k: v for k, v in key.items() if k not in gate and k != "versions"}
