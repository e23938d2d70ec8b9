"""Keeps float what reads or writes NaN or infinity on purpose.

A mask of -inf, or results blanked out with NaN, have no scale and are no fault of the data. NaN at a
layer with multiply-adds is one: it spreads over all that follows.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from qcompile.calibration import Calibration
from qcompile.job import Job
from qcompile.passes.integer_region import pairs
from qcompile.passes.quantizable import Site, static_sites

__all__ = ["computed_tensors", "float_reasons", "leave_float"]


def leave_float(job: Job, found: Calibration | None) -> Job:
    """The job whose sites carry a reason to be float where calibration found no range."""
    if found is None or not found.unusable:
        return job
    bare = {n: found.unusable[o] for n, o in found.same.items() if o in found.unusable}
    reasons = float_reasons(job.prepared.sites, bare)
    sites = tuple(
        replace(site, reason=reasons[site.origin]) if site.origin in reasons else site
        for site in job.prepared.sites
    )
    return replace(job, prepared=replace(job.prepared, sites=sites))


def computed_tensors(sites: Iterable[Site]) -> frozenset[str]:
    """Names of what layers with multiply-adds read and write."""
    layers = [site for site in static_sites(sites) if site.role == "compute"]
    return frozenset(
        name
        for site in layers
        for name in (*site.activation_names, *(v.name or "" for v in site.outputs))
    )


def float_reasons(sites: Iterable[Site], bare: Mapping[str, str]) -> dict[str, str]:
    """Origin id -> why a site cannot be integer, given tensors without a range and why they have none.

    A Relu that its owner's kernel takes in has no precision of its own: the owner stays float.
    """
    able = static_sites(sites)
    owners = pairs(able)
    found: dict[str, str] = {}
    for site in able:
        writes = site.row is None or site.row.quantized_output or site.node in owners
        outputs = [v.name or "" for v in site.outputs] if writes else []
        name = next((n for n in (*site.activation_names, *outputs) if n in bare), None)
        if name is not None:
            owner = owners.get(site.node, site)
            found[owner.origin] = f"no scale can hold '{name}': {bare[name]}"
    return found
