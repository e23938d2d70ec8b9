"""The costs of one compile's model: from a file, measured on what this builder makes of it, or estimated."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from qcompile.backends.devices import detect
from qcompile.build import Builder
from qcompile.data.inputs import Feed
from qcompile.environment import describe_machine, describe_versions
from qcompile.ir.errors import OptionError
from qcompile.ir.plan import FLOAT, INT8, INT8_DYNAMIC, INT16
from qcompile.job import Job
from qcompile.planner.clock import typical_feed
from qcompile.planner.costs import MEASURED, Costs, measure_costs, table_costs
from qcompile.planner.units import full_plan, units
from qcompile.trace import mac_counts, shapes_seen

__all__ = [
    "cost_models",
    "describe_costs",
    "elsewhere",
    "estimated_costs",
    "job_costs",
    "read_costs",
]

SPEEDUP = {True: 3.0, False: 1.6}
"""Of int8 multiply-adds with and without 8-bit dot products, for estimates."""


def cost_models(job: Job, builder: Builder) -> tuple[Path, Path, Path | None]:
    """Files of the model in float, fully int8 and, where something can be, fully dynamic."""
    everything = full_plan(job.prepared.sites)
    plain = everything.with_choice([u.origin for u in everything.layers], FLOAT, "all of it")
    dynamic = [u.origin for u in units(job.prepared.sites) if u.dynamic]
    variant = everything.with_choice(dynamic, INT8_DYNAMIC, "all that can be")
    last = builder.build(variant).path if dynamic else None
    return builder.build(plain).path, builder.build(everything).path, last


def job_costs(
    job: Job,
    builder: Builder,
    feeds: Sequence[Feed],
    *,
    budget_s: float,
    clock: Mapping[Path, float] | None = None,
    progress: Callable[[float], None] | None = None,
) -> Costs:
    """Build the model in float, fully int8 and fully dynamic, and measure these beside the user's.

    The float form is what a plan without integers is lowered to, not the prepared graph: the layers
    that a mixed plan leaves in float are lowered too (MiniLM's 13 LayerNormalizations: 1.7 ms in the
    prepared graph, 0.2 ms once joined with their residuals).

    Args:
        job: model and options.
        builder: builds them.
        feeds: samples; the one of the middle size is timed.
        budget_s: see `measure_costs`.
        clock: see `measure_costs`.
        progress: told the share of the work done.

    Raises:
        ModelError: a model cannot be opened or run.
    """
    options, model = job.options, job.prepared.model
    everything = full_plan(job.prepared.sites)
    plain, integer, dynamic = cost_models(job, builder)
    wide = None
    if job.prepared.target.wide_activation is not None:
        able = [layer.origin for layer in everything.layers if layer.precision == INT8]
        wide = builder.build(everything.with_choice(able, INT16, "all that can be")).path
    names = [v.name for n in model.graph for v in (*n.inputs, *n.outputs) if v and v.name]
    feed = typical_feed(feeds)
    seen = shapes_seen(model, names, feed, job.work, options.custom_ops)
    return measure_costs(
        plain,
        integer,
        [feed],
        original=job.float_path,
        dynamic_model=dynamic,
        wide_model=wide,
        clock=clock,
        planned=[layer.origin for layer in everything.layers if layer.precision != FLOAT],
        elements={name: prod(shape) for name, shape in seen.items()},
        threads=options.threads,
        budget_s=budget_s,
        custom_ops=options.custom_ops,
        progress=progress,
    )


def elsewhere(job: Job) -> bool:
    """Whether the compile is for another kind of CPU than this one, so that timing here says nothing."""
    return job.prepared.target.device != detect().name


def estimated_costs(job: Job, feeds: Sequence[Feed]) -> Costs:
    """Costs from multiply-adds and bytes, for a device that is not here."""
    model, custom_ops = job.prepared.model, job.options.custom_ops
    feed = typical_feed(feeds)
    names = [v.name for n in model.graph for v in n.outputs if v.name]
    names += [v.name for v in model.graph.inputs if v.name]
    elements = {
        name: prod(shape)
        for name, shape in shapes_seen(model, names, feed, job.work, custom_ops).items()
    }
    macs = mac_counts(model, feed, job.work, custom_ops)
    work = {
        site.origin: (
            macs.get(site.node, 0),
            sum(elements.get(v.name or "", 0) for v in site.node.outputs),
        )
        for site in job.prepared.sites
    }
    features = set(job.prepared.target.features)
    dot_products = not features.isdisjoint({"avx512_vnni", "avx_vnni", "asimddp", "i8mm"})
    dynamic = [u.origin for u in units(job.prepared.sites) if u.dynamic]
    return table_costs(
        work,
        elements,
        dynamic=dynamic,
        wide=job.prepared.target.wide_activation is not None,
        speedup=SPEEDUP[dot_products],
    )


def read_costs(job: Job, path: Path) -> Costs:
    """Costs from a file, which must be those of this model.

    Raises:
        OptionError: the file cannot be read, or does not know most of the model's layers.
    """
    costs = Costs.from_json(path.read_text(encoding="utf-8"))
    wanted = _compute_layers(job)
    missing = [name for name in wanted if name not in costs.layers]
    # a file from another version may fuse a little differently
    if 2 * len(missing) > len(wanted):
        known = ", ".join(sorted(costs.layers)[:3]) or "nothing"
        raise OptionError(
            f"--costs '{path}' are another model's: they know {known}, ..., and do not know "
            f"{len(missing)} of this model's {len(wanted)} compute layers ('{missing[0]}', ...); "
            f"measure again with `qcompile profile {job.float_path.name} -o {path.name}`"
        )
    return costs


def _compute_layers(job: Job) -> list[str]:
    return [u.origin for u in units(job.prepared.sites) if u.site.role == "compute"]


def describe_costs(job: Job, costs: Costs) -> dict[str, Any]:
    """What the report says of the costs: where they come from, and how they differ from this run."""
    return {
        "source": costs.source if job.options.costs is None else f"{costs.source}, from a file",
        "text": costs.text(),
        "differences": _differences(job, costs),
        "totals_ms": {name: ns / 1e6 for name, ns in sorted(costs.totals_ns.items())},
    }


def _differences(job: Job, costs: Costs) -> list[str]:
    if costs.source != MEASURED:
        return []
    found = []
    here = describe_machine()
    for key, word in (("cpu", "CPU"), ("cores", "cores")):
        if costs.machine.get(key) != here[key]:
            found.append(f"measured on another machine: {word} {costs.machine.get(key)}")
            found[-1] += f", this one has {here[key]}"
    runtime = costs.versions.get("onnxruntime")
    if runtime != describe_versions().get("onnxruntime"):
        found.append(f"measured with ONNX Runtime {runtime}")
    if costs.threads != job.options.threads:
        found.append(
            f"measured with {_threads(costs.threads)}, asked {_threads(job.options.threads)}"
        )
    feed = typical_feed(job.data.selection())
    shapes: Mapping[str, tuple[int, ...]] = {k: np.shape(v) for k, v in feed.items()}
    if dict(costs.shapes) != dict(shapes):
        shown = ", ".join(f"{k} {'x'.join(map(str, v))}" for k, v in costs.shapes.items())
        found.append(f"measured at {shown or 'unknown shapes'}")
    missing = [name for name in _compute_layers(job) if name not in costs.layers]
    if missing:
        found.append(f"no cost for {len(missing)} layers, the first is '{missing[0]}'")
    return found


def _threads(count: int | None) -> str:
    return "the default threads" if count is None else f"{count} thread{'s' * (count != 1)}"
