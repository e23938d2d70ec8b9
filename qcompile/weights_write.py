"""Writes the artifact of a weight-only compile: the model, its plan, the lock, the report, deploy/."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qcompile.artifact import LOCK, MODEL, file_sha256
from qcompile.backends.ort_realised import realised
from qcompile.deploy_files import SAMPLES, write_deploy
from qcompile.finish import common_data, finish, place_for
from qcompile.ir.codebook import CodebookWeight
from qcompile.ir.errors import QCompileError
from qcompile.ir.plan import FLOAT
from qcompile.ir.save import save_model
from qcompile.job import Job
from qcompile.layers import integer_share, layer_row
from qcompile.lock import Lock
from qcompile.outcome import settle
from qcompile.report import CompileReport
from qcompile.report_data.details import add_times
from qcompile.report_data.graph_rows import graph_rows, node_names
from qcompile.report_data.layer_errors import layer_errors
from qcompile.report_data.operator_times import Times, operator_times
from qcompile.report_data.worst_samples import worst_samples
from qcompile.reuse import byte_inputs
from qcompile.stages import Stages
from qcompile.weights_plan import MatrixChoice, as_plan

if TYPE_CHECKING:
    from qcompile.weights_flow import Compressed

__all__ = ["how_rounded", "matrix_rows", "write_weights"]

KERNELS = ("MatMulNBits", "GatherBlockQuantized", "MatMulBnb4")


def write_weights(
    folder: Path,
    job: Job,
    made: Compressed,
    key: Mapping[str, Any],
    stages: Stages,
    output: Path,
) -> tuple[CompileReport, int]:
    """Fill ``folder``; returns the report and the exit code."""
    plan, gate, model = as_plan(made.taken.choices), made.taken.gate, made.taken.model
    layers, share = _layers(job, made)
    outcome = settle(gate, job, layers)
    place, handed_over = place_for(folder, outcome)
    save_model(model, place / MODEL)
    hashes = {MODEL: file_sha256(place / MODEL)}
    (folder / "plan.json").write_text(plan.to_json(), encoding="utf-8", newline="\n")
    lock = Lock(byte_inputs(dict(key)), {}, plan, hashes, "")
    (folder / LOCK).write_text(lock.to_json(), encoding="utf-8", newline="\n")
    if handed_over:
        write_deploy(folder / "deploy", place / MODEL, list(job.data.held)[:SAMPLES])
    in_float = all(layer["requested"] == FLOAT for layer in layers)
    data = common_data(
        job,
        outcome,
        gate,
        model,
        output=output,
        key=key,
        records=made.taken.records,
        notes=made.notes,
    )
    data |= {
        "delivered_form": "float" if in_float else "quantized",
        "next": f"python {output / 'deploy' / 'run.py'}" if handed_over else outcome.advice,
        "hashes": hashes,
        "calibration": {
            "description": job.data.calibration.description,
            "random": job.data.random,
            "findings": list(job.data.findings),
        },
        "plan": {
            "how": how_rounded(made.algorithm, made.taken.choices),
            "candidates": _candidates(made),
            "front": [],
        },
        "layers": layers,
        "integer_mac_share": share,
        "matrices": matrix_rows(made),
        "language": made.generation,
        "cache": None if made.cache is None else made.cache.to_dict(),
    }
    data |= _details(job, made)
    return finish(folder, data, stages), outcome.exit_code


def _details(job: Job, made: Compressed) -> dict[str, Any]:
    """What the report's page draws; ranges and histograms belong to targets with integer activations."""
    prepared, taken = job.prepared, made.taken
    names = node_names(prepared.model, prepared.sites)
    graph = graph_rows(prepared.model, names)
    written = [w for row in graph["nodes"] for w in row["writes"][:1]]
    errors: dict[str, float | None] = {}
    times: Times | None = None
    samples: list[dict[str, Any]] = []
    left_out: list[str] = []
    parts = job.in_parts()
    hurried = job.options.effort == "fast"
    if hurried:
        left_out.append("error by layer, time by operator and worst samples: --effort fast")
    elif parts is not None:
        left_out.append(f"error by layer and time by operator: {parts.why}")
    else:
        with _told("error by layer", left_out):
            errors = layer_errors(job, taken.model, written)
        with _told("time by operator", left_out):
            times = operator_times(job, taken.path, taken.gate)
    if not hurried:
        with _told("worst samples", left_out):
            samples = worst_samples(job, taken.path, taken.gate, None, made.beside)
    for row in graph["nodes"]:
        row["sqnr_db"] = errors.get(row["writes"][0]) if row["writes"] else None
    if times is not None:
        add_times(prepared.model, names, {row["origin"]: row for row in graph["nodes"]}, times)
    return {
        "graph": graph,
        "tensors": [],
        "weights": [],
        "operators": None if times is None else times.rows(),
        "samples": samples,
        "left_out": left_out,
    }


@contextmanager
def _told(what: str, left_out: list[str]) -> Iterator[None]:
    """What cannot be found out is named, and never fails a compile."""
    try:
        yield
    except QCompileError as e:
        left_out.append(f"{what}: {e}")


def _candidates(made: Compressed) -> list[dict[str, Any]]:
    """One row an attempt."""
    rows: list[dict[str, Any]] = []
    for tried in made.tried:
        gate = tried.gate
        name = made.algorithm + (
            f", {tried.share:.0%} of the weights in 8 bits" if tried.share else ""
        )
        refused = "; ".join(check.text for check in gate.failed)
        figures = gate.score.text if gate.score is not None else f"{gate.sqnr_db or 0.0:.1f} dB"
        rows.append(
            {
                "name": name,
                "text": f"{name}: {figures}",
                "ms": None if gate.speed is None else gate.speed.models["artifact"].p50_ms,
                "speedup": gate.speedup,
                "sqnr_db": gate.sqnr_db,
                "refused": refused,
                "chosen": tried is made.taken,
            }
        )
    return rows


def how_rounded(algorithm: str, choices: Sequence[MatrixChoice]) -> str:
    """Algorithm and number of matrices by form."""
    counts: dict[str, int] = {}
    for choice in choices:
        name = FLOAT if choice.spec is None else f"{choice.spec.bits} bits in {choice.spec.block}s"
        counts[name] = counts.get(name, 0) + 1
    listed = ", ".join(f"{n} matrices {name}" for name, n in counts.items())
    return f"{algorithm}: {listed or 'no matrix'}"


def matrix_rows(made: Compressed) -> list[dict[str, Any]]:
    """One row a matrix."""
    rows = []
    for choice in made.taken.choices:
        found = made.taken.rounded.get(choice.matrix.name)
        weight = None if found is None else found.weight
        spec = None if weight is None or isinstance(weight, CodebookWeight) else weight.spec
        rows.append(
            {
                "name": choice.matrix.name,
                "shape": list(choice.matrix.shape),
                "uses": list(choice.matrix.origins),
                "precision": choice.precision,
                "stored_bits": None if spec is None else spec.storage,
                "block": None if choice.spec is None else choice.spec.block,
                "symmetric": None if spec is None else spec.symmetric,
                "algorithm": None if found is None else found.how,
                "sqnr_db": None if found is None else found.sqnr_db,
                "error": None if found is None else found.error,
                "damping": None if found is None else found.damping,
                "note": choice.reason if found is None or not found.note else found.note,
            }
        )
    return rows


def _layers(job: Job, made: Compressed) -> tuple[list[dict[str, Any]], float | None]:
    """One row for each node that reads a matrix; realised is what ONNX Runtime executes."""
    macs = made.macs
    feed = job.data.calibration.load(0)
    seen = realised(
        made.taken.path, feed, custom_ops=job.options.custom_ops, folder=job.work
    ).layers
    rows: list[dict[str, Any]] = []
    for layer in as_plan(made.taken.choices).layers:
        found = seen.get(layer.origin)
        kinds = () if found is None else found.op_types
        integer = any(kind in KERNELS for kind in kinds)
        rows.append(
            layer_row(
                layer,
                realised=layer.precision if integer or found is None else FLOAT,
                executed_as=kinds,
                macs=macs,
                compute=layer.op_type != "Gather",
            )
        )
    return rows, integer_share(rows, macs)
