"""What every kind of artifact ends with: choices and lock, the report's common keys, page and manifest."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx_ir as oir

from qcompile.artifact import LOCK, file_sha256, new_artifact, write_manifest
from qcompile.build import Build
from qcompile.environment import describe_machine, describe_versions
from qcompile.ir.manager import PassRecord
from qcompile.ir.notes import Note
from qcompile.job import Job
from qcompile.learned_file import LEARNED, write_learned
from qcompile.lock import Lock
from qcompile.oldest_runtime import oldest_runtime
from qcompile.outcome import Outcome
from qcompile.ranges import Ranges
from qcompile.report import REPORT_VERSION, CompileReport, notes_as_data, passes_as_data
from qcompile.report_page.page import write_page
from qcompile.result import CompileResult
from qcompile.reuse import byte_inputs
from qcompile.stages import Stages
from qcompile.verdict import DELIVERED, INCONCLUSIVE, NOT_MEASURED, GateResult, to_jsonable

__all__ = ["common_data", "deliver", "describe_model", "finish", "place_for", "write_choices"]


def place_for(folder: Path, outcome: Outcome) -> tuple[Path, bool]:
    """Where the models go, and whether they are handed over.

    A model that was refused is kept under ``rejected/``, for diagnosis, never as the artifact itself.
    """
    handed_over = outcome.verdict in (DELIVERED, INCONCLUSIVE, NOT_MEASURED)
    place = folder if handed_over else folder / "rejected"
    place.mkdir(exist_ok=True)
    return place, handed_over


def write_choices(
    folder: Path,
    job: Job,
    ranges: Ranges,
    build: Build,
    hashes: Mapping[str, str],
    key: Mapping[str, Any],
) -> None:
    """Plan, ranges, what was learned, and the lock that makes the same bytes of them."""
    (folder / "plan.json").write_text(build.plan.to_json(), encoding="utf-8", newline="\n")
    ranges.save(folder / "ranges.npz")
    digest, learned = "", build.learned
    if learned.weights or learned.bias_shifts:
        write_learned(folder / LEARNED, learned, job.prepared.model)
        digest = file_sha256(folder / LEARNED)
    factors = job.prepared.factors
    lock = Lock(byte_inputs(dict(key)), ranges.chosen, build.plan, dict(hashes), digest, factors)
    (folder / LOCK).write_text(lock.to_json(), encoding="utf-8", newline="\n")


def common_data(
    job: Job,
    outcome: Outcome,
    gate: GateResult,
    deployed: oir.Model,
    *,
    output: Path,
    key: Mapping[str, Any],
    records: Sequence[PassRecord] = (),
    notes: Sequence[Note] = (),
) -> dict[str, Any]:
    """The keys of report.json that do not depend on the kind of target.

    Args:
        job: the options and the prepared model.
        outcome: how the compile ends.
        gate: what was measured.
        deployed: the model in the form that is opened by a runtime.
        output: the artifact's folder.
        key: the fingerprint of all inputs.
        records: passes after preparation.
        notes: what was noted after preparation.
    """
    target, oldest = job.prepared.target, oldest_runtime(deployed)
    return {
        "version": REPORT_VERSION,
        "verdict": outcome.verdict,
        "oldest_onnxruntime": {"version": oldest.text, "because": list(oldest.because)},
        "exit_code": outcome.exit_code,
        "headline": outcome.headline,
        "warnings": list(outcome.warnings),
        "output": str(output),
        "model": describe_model(job),
        "target": {"name": target.name, "device": target.device, "notes": list(target.notes)},
        "inputs": dict(key),
        "techniques": list(job.options.techniques),
        "gate": gate.to_dict(),
        "passes": passes_as_data((*job.prepared.records, *records)),
        "notes": notes_as_data((*job.prepared.notes, *notes)),
        "machine": describe_machine(),
        "versions": describe_versions(),
        "seed": job.options.seed,
    }


def describe_model(job: Job) -> dict[str, Any]:
    """The user's model in the report."""
    loaded = job.prepared.loaded
    return {
        "name": (job.reference or job.float_path).name,
        "sha256": loaded.sha256,
        "ir_version": loaded.model.ir_version,
        "opset": loaded.model.opset_imports.get("", 0),
        "inputs": [str(spec) for spec in job.prepared.inputs],
        "nodes": sum(1 for _ in loaded.model.graph),
    }


def finish(folder: Path, data: Mapping[str, Any], stages: Stages) -> CompileReport:
    """Write report.json, the page of it and, last of all, the manifest with every file's hash."""
    report = CompileReport(to_jsonable({**data, "stages": stages.rows()}))
    (folder / "report.json").write_text(report.to_json(), encoding="utf-8", newline="\n")
    write_page(report.data, folder / "report.html")
    found = report.data
    write_manifest(
        folder,
        {
            "qcompile": found["versions"].get("qcompile", ""),
            "verdict": found["verdict"],
            "target": found["target"]["name"],
            "device": found["target"]["device"],
            "oldest_onnxruntime": found["oldest_onnxruntime"]["version"],
            "inputs": found["inputs"],
            "machine": found["machine"],
            "seed": found["seed"],
        },
    )
    return report


def deliver(
    job: Job,
    lock: Lock | None,
    stages: Stages,
    output: Path,
    keep: object,
    write: Callable[[Path], tuple[CompileReport, int]],
) -> CompileResult:
    """The stage "write": what ``write`` puts into a new folder takes the place of ``output``.

    Raises:
        OutputError: it cannot be written, or differs from what the lock says.
    """
    with stages("write"), new_artifact(output, job.options.force) as folder:
        report, code = write(folder)
        if lock is not None:
            lock.check_outputs(report.data["hashes"], job.options.lock or Path(LOCK))
    return CompileResult(report, output, code, keep=keep)
