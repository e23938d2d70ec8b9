"""Keeps float what the runtime refuses as an integer, so that one kernel's limit costs one layer.

A capability table cannot know every limit of every release. Before anything is chosen, the plan with
all that can be integer is built and run; where the runtime refuses it, the layers behind the refusal
are found by halving and become float for the whole compile.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from qcompile.backends.ort import open_session
from qcompile.build import Builder
from qcompile.interface import shape_extremes
from qcompile.ir.errors import ModelError
from qcompile.ir.plan import FLOAT, PrecisionPlan
from qcompile.job import Job

__all__ = ["find_refused", "keep_runnable"]

MOST = 16
"""Layers to give up before the whole model is left to the gate's verdict."""


def keep_runnable(job: Job, builder: Builder, plan: PrecisionPlan) -> tuple[Job, PrecisionPlan]:
    """The job and plan in which layers that the runtime refuses as integers are float.

    Their sites carry the reason from then on. Without a refusal, or where no set of layers explains
    it, both come back as they were: the gate then says what the runtime said.
    """

    def refusal(trial: PrecisionPlan) -> str:
        try:
            session = open_session(
                builder.build(trial).path,
                threads=job.options.threads,
                custom_ops=job.options.custom_ops,
            )
            for feed in shape_extremes(job.data.selection()):
                session.run(feed)
        except ModelError as e:
            return str(e)
        return ""

    refused = find_refused(plan, refusal)
    sites = tuple(
        replace(site, reason=refused[site.origin]) if site.origin in refused else site
        for site in job.prepared.sites
    )
    for origin, reason in refused.items():
        plan = plan.with_choice([origin], FLOAT, reason)
    return replace(job, prepared=replace(job.prepared, sites=sites)), plan


def find_refused(plan: PrecisionPlan, refusal: Callable[[PrecisionPlan], str]) -> dict[str, str]:
    """Origin id -> reason of the layers that must be float for the plan to run; {} when none explain it.

    Each is the last layer of the shortest prefix whose change to float makes the rest run, found by
    halving; then it stays float and the search is repeated, since several may be refused.

    Args:
        plan: what is wanted.
        refusal: the runtime's words on a plan, "" when it runs.
    """
    said = refusal(plan)
    able = [c.origin for c in plan.layers if c.precision != FLOAT and not c.pinned]
    if not said or not able or refusal(plan.with_choice(able, FLOAT, said)):
        return {}
    found: dict[str, str] = {}
    while said:
        if len(found) == MOST:
            return {}
        rest = [name for name in able if name not in found]
        culprit = rest[_shortest(plan, rest, refusal) - 1]
        found[culprit] = f"ONNX Runtime refuses it as an integer: {said}"
        plan = plan.with_choice([culprit], FLOAT, found[culprit])
        said = refusal(plan)
    return found


def _shortest(
    plan: PrecisionPlan, names: Sequence[str], refusal: Callable[[PrecisionPlan], str]
) -> int:
    """Length of the shortest prefix of ``names`` without which the plan runs; all of them do."""
    low, high = 0, len(names)
    while high - low > 1:
        middle = (low + high) // 2
        if refusal(plan.with_choice(names[:middle], FLOAT, "a trial")):
            low = middle
        else:
            high = middle
    return high
