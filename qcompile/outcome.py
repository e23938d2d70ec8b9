"""From the gate's verdict and what was required to the word, the exit code and the warnings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qcompile.float_only import NO_LAYER, inside_text, why_float
from qcompile.ir.plan import FLOAT
from qcompile.job import Job
from qcompile.verdict import (
    EXIT_CODES,
    INCONCLUSIVE,
    NOT_DELIVERED,
    NOT_MEASURED,
    SKIPPED,
    GateResult,
)

__all__ = ["Outcome", "settle"]

GATE_NOT_MET = 3
MISSING = 4


@dataclass(frozen=True)
class Outcome:
    """How a compile ends.

    Attributes:
        verdict: the word.
        exit_code: 0, 3 or 4.
        headline: the sentence.
        warnings: what holds all the same.
        advice: what to do next when nothing was delivered.
    """

    verdict: str
    exit_code: int
    headline: str
    warnings: tuple[str, ...]
    advice: str


def settle(
    gate: GateResult, job: Job, layers: Sequence[Mapping[str, Any]], *, foreign: bool = False
) -> Outcome:
    """Apply the rules that are not numbers: random data, strictness, requirements.

    Args:
        gate: what was measured.
        job: the options.
        layers: rows of the report.
        foreign: all ranges come from another tool, so that random data decided nothing.
    """
    options, data = job.options, job.data
    verdict, code, headline = gate.verdict, EXIT_CODES[gate.verdict], gate.headline
    warnings = list(gate.notes)
    advice = ""

    def refuse(reason: str, exit_code: int = GATE_NOT_MET, overrule: bool = False) -> None:
        nonlocal verdict, code, headline
        if verdict != NOT_DELIVERED or overrule:
            figures = headline.removeprefix(verdict.upper()).lstrip(": ")
            headline = f"NOT DELIVERED: {reason} ({figures})"
            verdict, code = NOT_DELIVERED, exit_code

    # A target without integer rows has float layers only; its casts rest on calibration all the same.
    target = job.prepared.target
    integers = bool(target.ops) or target.weights is not None
    in_float = integers and all(c["requested"] == FLOAT for c in layers)
    if in_float and not options.best_effort:
        why = why_float(job.prepared)
        judged = all(check.name != "layers" for check in gate.checks)
        refuse(f"{NO_LAYER}: {why}" if why else NO_LAYER, overrule=bool(why) and judged)
        advice = "--best-effort delivers the fused float model"
    # A model that stays in float was calibrated on nothing.
    if data.random and foreign and "real-data" not in options.require:
        warnings.append("outputs were compared on random data: pass --calibration to know more")
    elif data.random and not in_float:
        if options.allow_random and "real-data" not in options.require:
            warnings.append("calibrated on random data: no accuracy on real data is known")
        else:
            refuse("calibrated on random data; pass --calibration")
            advice = "qcompile init MODEL writes a calib.py to fill in; then pass --calibration"
    inside = "" if in_float else inside_text(job.prepared.model)
    if inside:
        warnings.append(
            f"{inside} stay float, and no share counts them: control flow is left as it is"
        )
    missed = _missed(layers)
    if missed:
        first = missed[0]
        text = (
            f"{len(missed)} layers are not realised as requested, the first is '{first['origin']}' "
            f"({first['requested']} -> {first['realised']})"
        )
        if options.strict or "realised" in options.require:
            refuse(text)
        else:
            warnings.append(text)
    if verdict == INCONCLUSIVE and "conclusive" in options.require:
        refuse("the measurement is inconclusive; give it more time with --gate-time")
    if verdict == NOT_MEASURED and "measured" in options.require:
        refuse("the target's hardware is not here", MISSING)
    alone = [c for c in gate.checks if c.name == "speed" and c.state == SKIPPED and c.found]
    if alone and "measured" in options.require:
        refuse(f"speed was not compared: {alone[0].text}", MISSING)
    if verdict == NOT_DELIVERED and not advice:
        advice = _advice(gate)
    return Outcome(verdict, code, headline, tuple(dict.fromkeys(warnings)), advice)


def _missed(layers: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Layers with multiply-adds that run in another precision than asked.

    An activation or a move between them may be written in float on purpose, where that is faster
    (SiLU as one float kernel): the report lists it, but it is no miss.
    """
    return [x for x in layers if x["compute"] and x["requested"] != x["realised"]]


def _advice(gate: GateResult) -> str:
    failed = {check.name for check in gate.failed}
    if failed & {"accuracy", "metric"}:
        return "more calibration samples, or allow more with --max-drop or --min-sqnr"
    if "speed" in failed:
        return "this model gains nothing here from integers; deploy the float model"
    return "the report in the output folder has every number"
