"""The costs of one compile's model: measured on what this builder makes of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod

import numpy as np

from qcompile.build import Builder
from qcompile.data.inputs import Feed
from qcompile.ir.plan import FLOAT, INT8_DYNAMIC
from qcompile.job import Job
from qcompile.planner.costs import Costs, measure_costs
from qcompile.planner.units import full_plan, units
from qcompile.trace import shapes_seen

__all__ = ["job_costs", "typical_feed"]


def typical_feed(feeds: Sequence[Feed]) -> Feed:
    """The feed of the middle size: where shapes differ, costs are those of the typical one."""
    sizes = [sum(np.size(value) for value in feed.values()) for feed in feeds]
    return feeds[int(np.argsort(sizes, kind="stable")[(len(feeds) - 1) // 2])]


def job_costs(
    job: Job,
    builder: Builder,
    feeds: Sequence[Feed],
    *,
    budget_s: float,
    progress: Callable[[float], None] | None = None,
) -> Costs:
    """Build the model in float, fully int8 and fully dynamic, and measure these beside the user's.

    The float form is what a plan without integers is lowered to, not the prepared graph: the layers
    that a mixed plan leaves in float are lowered too (MiniLM's 13 LayerNormalizations: 1.7 ms in the
    prepared graph, 0.2 ms once joined with their residuals).

    Args:
        job: model and options.
        builder: builds the two.
        feeds: samples; the one of the middle size is timed.
        budget_s: see `measure_costs`.
        progress: told the share of the work done.

    Raises:
        ModelError: a model cannot be opened or run.
    """
    options, model = job.options, job.prepared.model
    everything = full_plan(job.prepared.sites)
    dynamic = [u.origin for u in units(job.prepared.sites) if u.dynamic]
    variant = everything.with_choice(dynamic, INT8_DYNAMIC, "all that can be")
    plain = everything.with_choice([u.origin for u in everything.layers], FLOAT, "all of it")
    names = [v.name for n in model.graph for v in (*n.inputs, *n.outputs) if v and v.name]
    feed = typical_feed(feeds)
    seen = shapes_seen(model, names, feed, job.work, options.custom_ops)
    return measure_costs(
        builder.build(plain).path,
        builder.build(everything).path,
        [feed],
        original=job.float_path,
        dynamic_model=builder.build(variant).path if dynamic else None,
        planned=[layer.origin for layer in everything.layers if layer.precision != FLOAT],
        elements={name: prod(shape) for name, shape in seen.items()},
        threads=options.threads,
        budget_s=budget_s,
        custom_ops=options.custom_ops,
        progress=progress,
    )
