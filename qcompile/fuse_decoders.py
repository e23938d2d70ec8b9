"""Writes what a lowered decoder does in float between its matrices as ONNX Runtime is fast at it."""

from __future__ import annotations

import onnx_ir as oir

from qcompile.ir.manager import CompileState, PassManager, PassRecord
from qcompile.job import Job
from qcompile.oldest_runtime import FOUR_AXES, first_release, parse_release
from qcompile.passes.prepare import decoder_passes

__all__ = ["fuse_decoder"]

_WRITES = {"fuse-rotary": FOUR_AXES}
"""Pass -> the newest of ONNX Runtime's own operators that it writes."""


def fuse_decoder(job: Job, model: oir.Model) -> tuple[PassRecord, ...]:
    """Edit a lowered model in place; returns the log of the passes.

    A pass that writes what ``--min-ort``'s release does not have is left out.
    """
    options = job.options
    passes = decoder_passes()
    if options.min_ort is not None:
        oldest = parse_release(options.min_ort)
        passes = [p for p in passes if (first_release(_WRITES.get(p.name, "")) or oldest) <= oldest]
    manager = PassManager(passes, frozenset(options.disable))
    manager.run(CompileState(model, job.prepared.target))
    return tuple(manager.records)
