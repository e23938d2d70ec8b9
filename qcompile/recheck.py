"""Whether an artifact still is what it was: bytes, outputs, and the gate under what is installed now."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qcompile.compare import OutputComparison, compare_outputs
from qcompile.data.inputs import Feed
from qcompile.environment import describe_versions
from qcompile.gate import Limits, judge
from qcompile.ir.errors import QCompileError
from qcompile.ir.load import load_model
from qcompile.needed import FLOOR_DB
from qcompile.scratch import scratch_folder
from qcompile.selected import exposed_pair
from qcompile.subject import Subject, stored_samples
from qcompile.verdict import FAIL, PASS, SKIPPED, Check, GateResult

__all__ = ["Recheck", "recheck"]

REPRODUCED_DB = 30.0
"""The stored outputs are reproduced from this SQNR on: other kernels round otherwise, and a wrong
result is far below (deploy/run.py holds to the same)."""

SLACK_DB = 3.0


@dataclass(frozen=True)
class Recheck:
    """What was found.

    Attributes:
        checks: in order; the gate's own follow those of the folder.
        gate: the gate run again; None where it could not be.
        changed_versions: package -> version then, version now.
    """

    checks: tuple[Check, ...]
    gate: GateResult | None
    changed_versions: Mapping[str, tuple[str | None, str | None]]

    @property
    def exit_code(self) -> int:
        """3 when a check failed, else 0."""
        return 3 if any(c.state == FAIL for c in self.checks) else 0


def recheck(
    subject: Subject,
    float_model: Path | None,
    feeds: Sequence[Feed] = (),
    *,
    names: Sequence[str] = (),
    threads: int | None = None,
    gate_time: float = 10.0,
    custom_ops: Path | None = None,
    progress: Callable[[str, float], None] | None = None,
) -> Recheck:
    """Check an artifact's folder.

    Args:
        subject: an artifact.
        float_model: the model it was compiled from; None skips the gate and says so.
        feeds: samples for the gate; none takes those stored in ``deploy/``.
        names: of the samples.
        threads: as the gate times; None takes what the artifact was compiled with.
        gate_time: seconds for timing.
        custom_ops: library with custom operators.
        progress: told the stage and the share of it done.

    Raises:
        OutputError: no artifact.
    """
    report = subject.report()
    wrong = subject.artifact.damaged() if subject.artifact is not None else []
    checks = [Check("hashes", FAIL, text) for text in wrong] or [
        Check("hashes", PASS, "every file is as it was written")
    ]
    if subject.rejected:
        text = f"nothing was delivered: {report['headline']}"
        return Recheck((*checks, Check("delivered", FAIL, text)), None, _versions(report))
    checks += _reproduces(subject, custom_ops)
    gate = None
    if any(c.state == FAIL and c.name == "opens" for c in checks):
        checks.append(Check("gate", SKIPPED, "there is nothing to judge"))
    elif subject.portable:
        text = "its speed is the device's: run deploy/device.py there"
        checks.append(Check("gate", SKIPPED, text))
    elif float_model is None:
        text = (
            f"'{report['model']['name']}' is neither here nor beside the folder with the hash it "
            "had; name it with --float to run the gate again"
        )
        checks.append(Check("gate", SKIPPED, text))
    else:
        samples = list(feeds) or stored_samples(subject.path)
        with scratch_folder() as work:
            exact, artifact, selected = exposed_pair(
                float_model, load_model(float_model).model, subject.model, work
            )
            gate = judge(
                exact,
                artifact,
                samples,
                _limits(report),
                names=names,
                selected=selected,
                threads=threads or report["inputs"].get("option.threads"),
                budget_s=gate_time,
                custom_ops=custom_ops,
                progress=progress,
            )
        checks += gate.checks
    return Recheck(tuple(checks), gate, _versions(report))


def _reproduces(subject: Subject, custom_ops: Path | None) -> list[Check]:
    """Opens it and runs the stored samples."""
    try:
        session = subject.open(custom_ops=custom_ops)
    except QCompileError as e:
        return [Check("opens", FAIL, str(e))]
    opened = Check("opens", PASS, "ONNX Runtime opens it")
    feeds = stored_samples(subject.path)
    expected = stored_samples(subject.path, "sample_out.npz")
    if not feeds or len(feeds) != len(expected):
        return [opened, Check("outputs", SKIPPED, "the folder stores no samples")]
    compared: dict[str, OutputComparison] = {}
    try:
        for index, (feed, ref) in enumerate(zip(feeds, expected, strict=True)):
            compare_outputs(compared, str(index), None, ref, session.run(feed))
    except QCompileError as e:
        return [opened, Check("outputs", FAIL, f"fails on stored sample {index}: {e}")]
    checks = [opened]
    for one in (c.result() for c in compared.values()):
        if one.kind == "float" and one.sqnr_db is not None and not one.zero:
            state = PASS if one.sqnr_db >= REPRODUCED_DB and not one.nonfinite else FAIL
            how = "bit for bit" if not one.max_abs_error else f"to {one.sqnr_db:.1f} dB"
            needed = "" if state == PASS else f" ({REPRODUCED_DB:g} dB needed)"
            text = f"output '{one.name}' is the stored one {how}{needed}"
            checks.append(Check("outputs", state, text, one.sqnr_db, REPRODUCED_DB, one.name))
        elif one.agreement is not None:
            state = PASS if one.agreement >= 0.99 else FAIL
            text = f"output '{one.name}': {one.agreement:.1%} of the stored elements"
            checks.append(Check("outputs", state, text, one.agreement, 0.99, one.name))
    return checks


def _limits(report: Mapping[str, Any]) -> Limits:
    """The limits it was compiled with.

    A metric is not run again: where one decided, the SQNR must be the one measured then, less 3 dB.
    """
    inputs, then = report["inputs"], report["gate"].get("sqnr_db")
    floor = inputs.get("option.min_sqnr")
    if floor is None:
        judged = report["gate"].get("score") is not None and then is not None
        floor = min(FLOOR_DB, then - SLACK_DB) if judged else FLOOR_DB
    return Limits(
        min_speedup=float(inputs.get("option.min_speedup", 1.0)),
        min_sqnr=floor,
        max_latency_ms=inputs.get("option.max_latency"),
        max_bytes=inputs.get("option.max_size"),
    )


def _versions(report: Mapping[str, Any]) -> dict[str, tuple[str | None, str | None]]:
    then, now = report["versions"], describe_versions()
    names = sorted({*then, *now})
    return {n: (then.get(n), now.get(n)) for n in names if then.get(n) != now.get(n)}
