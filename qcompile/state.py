"""State of recurrent models in a compile: found or as asked, and in the calibration data too."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from qcompile.backends.ort import Port, Session
from qcompile.cache_scales import STEPS as CACHE_STEPS
from qcompile.data.inputs import Feed
from qcompile.data.sources import FeedSet
from qcompile.ir.errors import ModelError
from qcompile.job import Job
from qcompile.rollout import Rollout, find_rollout
from qcompile.segmented import port_of

__all__ = ["with_state"]


def with_state(job: Job) -> Job:
    """The job with its rollout; where every sample starts from zero, calibration sees later states.

    Raises:
        OptionError: --state names what the model does not have.
    """
    options = job.options
    steps = options.steps or (CACHE_STEPS if options.kv_cache == "int8" else None)
    rollout = find_rollout(*_ports(job), options.state, steps)
    if rollout is None:
        return job
    rollout = rollout.of_decoder(job.prepared.inputs)
    job = replace(job, rollout=rollout)
    # a decoder's samples begin with an empty cache, and no mask of theirs fits one that is filled
    if rollout.decoder or job.in_parts() is not None:
        return (
            job  # in parts: one sample after the other would be one pass through the file for each
        )
    data = job.data
    if data.random or not _all_zero(data.calibration, rollout):
        return job
    carried = _carried(job.open_reference(), data.calibration, rollout)
    if carried is None:
        return job
    names = ", ".join(rollout.state.values())
    finding = f"{names}: zero in every sample, so calibrated on the states that follow from them"
    return replace(job, data=replace(data, calibration=carried, findings=(*data.findings, finding)))


def _ports(job: Job) -> tuple[tuple[Port, ...], tuple[Port, ...]]:
    """Inputs and outputs as the file states them, which opens nothing; else as the runtime finds them."""
    graph = job.prepared.loaded.model.graph
    values = [*graph.inputs, *graph.outputs]
    if job.reference is not None or any(v.shape is None or v.dtype is None for v in values):
        session = job.open_reference()
        return session.inputs, session.outputs
    given = tuple(port_of(v) for v in graph.inputs if not v.is_initializer())
    return given, tuple(port_of(v) for v in graph.outputs)


def _all_zero(feeds: FeedSet, rollout: Rollout) -> bool:
    inputs = rollout.state.values()
    return len(feeds) > 1 and not any(np.any(feed[name]) for feed in feeds for name in inputs)


def _carried(session: Session, feeds: FeedSet, rollout: Rollout) -> FeedSet | None:
    """The samples one after the other, each with the state that the one before it left."""
    state: dict[str, Any] = {}
    found: list[Feed] = []
    try:
        for feed in feeds:
            found.append({**feed, **state})
            outputs = session.run(found[-1])
            state = {into: outputs[out] for out, into in rollout.state.items()}
    except ModelError:
        return None  # the gate's notes say why it cannot be rolled
    return FeedSet(
        feeds.description, feeds.names, found.__getitem__, feeds.random, feeds.notes, feeds
    )
