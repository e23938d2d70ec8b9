"""What a gate wants of the float model and no weight has a part in, done before there is an artifact."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from qcompile.data.inputs import Feed
from qcompile.ir.errors import ModelError
from qcompile.ir.notes import Note
from qcompile.ir.target import WeightForm
from qcompile.job import Job
from qcompile.memory import allowed_bytes, needed_for
from qcompile.opened import OpenedModel
from qcompile.opening import opening_of
from qcompile.options import Options
from qcompile.remembered import RememberedSession
from qcompile.round_weights import rounds_alone
from qcompile.segmented import SegmentedSession
from qcompile.sizes import model_bytes

__all__ = ["float_ahead", "opened_early", "spared"]

HURRIED = 8
"""Held-back samples that judge with ``--effort fast``."""

Beside = RememberedSession | SegmentedSession


def spared(job: Job) -> tuple[Job, list[Note]]:
    """With ``--effort fast`` a job whose gate judges by fewer samples, spread evenly; else the same."""
    total = len(job.data.held)
    if job.options.effort != "fast" or total <= HURRIED:
        return job, []
    some = np.linspace(0, total - 1, HURRIED).astype(int).tolist()
    note = Note("", f"judged by {HURRIED} of {total} held-back samples: --effort fast")
    return replace(job, data=replace(job.data, held=job.data.held.subset(some))), [note]


@contextmanager
def float_ahead(job: Job, *, runs: bool, apart: bool) -> Iterator[Callable[[], Beside]]:
    """What the artifact must equal, for all attempts, with what it gives for the gate's samples.

    Args:
        job: what is compiled.
        runs: there will be something to judge.
        apart: the model may stand open in a process of its own all the time, opened, run and timed there,
            while the caller does something that needs one core and little memory. Opening is most of what
            judging a language model takes. Not done where memory is limited, or the reference is another
            model than the one that is timed.

    Yields:
        gives it, once it is there.

    Raises:
        ModelError: float cannot be opened, or does not run its samples; when it is asked for.
    """
    parts = job.in_parts()
    if parts is not None:
        yield lambda: parts
        return
    if not runs or not apart or job.options.memory_limit is not None or job.reference is not None:
        beside = job.remembered_reference()
        if runs:
            _remember(job, beside)
        beside.release()
        yield lambda: beside
        return
    opened = job.opened
    if opened is None or opened.path != job.float_path:
        opened = _opened(job.float_path, job.options)
    with closing(opened), ThreadPoolExecutor(1) as pool:
        yield pool.submit(_tried, job, opened).result


@contextmanager
def opened_early(
    source: Any, options: Options, form: WeightForm | None
) -> Iterator[OpenedModel | None]:
    """Begin to open the model before it is read, where ``float_ahead`` will have it open anyway.

    Args:
        source: the user's model.
        options: what was asked.
        form: of the target's weights.

    Yields:
        None where it is no file, may not be rounded alone, or should not lie in memory twice.
    """
    wanted = form is not None and rounds_alone(options, form) and options.memory_limit is None
    if not wanted or not isinstance(source, (str, Path)):
        yield None
        return
    size = model_bytes(Path(source))
    if size is None or 2 * needed_for(size) > allowed_bytes(None):
        yield None
        return
    with closing(_opened(Path(source), options)) as opened:
        yield opened


def _opened(path: Path, options: Options) -> OpenedModel:
    return OpenedModel(path, threads=options.threads, custom_ops=options.custom_ops)


def _tried(job: Job, opened: OpenedModel) -> RememberedSession:
    opened.wait()
    beside = job.remembered_reference(opened)
    beside.try_out(opening_of(list(job.data.held), job.data.extremes(), beside.inputs).feeds)
    _remember(job, beside)
    return beside


def _remember(job: Job, beside: RememberedSession) -> None:
    """Run float on what the gate will compare."""
    feeds: list[Feed] = list(job.data.held)
    beside.remember(feeds)
    batched = opening_of(feeds, (), beside.inputs).batched
    if batched is not None:
        with suppress(ModelError):  # the gate says so, where it tries the same
            beside.remember([dict(batched)])
