"""How far each layer's output is from float's when everything before it is quantized too."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as oir

from qcompile.capture import capture, tensor_sizes
from qcompile.compare import db
from qcompile.data.inputs import Feed
from qcompile.job import Job
from qcompile.report_data.rounded import rounded

__all__ = ["layer_errors"]

TOGETHER = 192 * 2**20
"""Bytes of tensors that are taken out of a model in one run."""

PASSES = 6
"""Most runs; of a model whose tensors need more, evenly spread layers are measured."""

LARGE = 512 * 2**20
"""Bytes of weights from which there is one run: each writes both models to disk."""

FEEDS = 2


def layer_errors(job: Job, portable: oir.Model, tensors: Sequence[str]) -> dict[str, float | None]:
    """Tensor -> SQNR in dB of the Q/DQ model's beside the prepared float model's.

    What neither holds under its name, and what is not float, is left out.

    Raises:
        CalibrationError: a sample does not run.
    """
    model = job.prepared.model
    held = set(_floats(portable, tensors))
    names = [n for n in _floats(model, tensors) if n in held]
    if not names:
        return {}
    feeds = [job.data.calibration.load(i) for i in range(min(FEEDS, len(job.data.calibration)))]
    sizes = tensor_sizes(
        model, names, feeds[0], job.work / "sizes.onnx", custom_ops=job.options.custom_ops
    )
    found: dict[str, float | None] = {}
    weights = sum(t.nbytes for v in model.graph.initializers.values() if (t := v.const_value))
    for group in _groups(names, sizes, 1 if weights > LARGE else PASSES):
        found |= _group(job, portable, group, feeds)
    return found


def _floats(model: oir.Model, names: Sequence[str]) -> list[str]:
    made = {
        v.name: v
        for n in model.graph
        for v in n.outputs
        if isinstance(v.type, oir.TensorType) and v.type.dtype.is_floating_point()
    }
    return [name for name in dict.fromkeys(names) if name in made]


def _groups(names: Sequence[str], sizes: dict[str, int], passes: int) -> list[list[str]]:
    """Tensors that are taken out together, in graph order."""
    able = [n for n in names if sizes[n] <= TOGETHER]
    total = sum(sizes[n] for n in able)
    if total > passes * TOGETHER:
        able = able[:: -(-total // (passes * TOGETHER))]
    groups: list[list[str]] = [[]]
    filled = 0
    for name in able:
        if filled + sizes[name] > TOGETHER and groups[-1]:
            groups.append([])
            filled = 0
        groups[-1].append(name)
        filled += sizes[name]
    return groups if groups[0] else []


def _group(
    job: Job, portable: oir.Model, names: Sequence[str], feeds: Sequence[Feed]
) -> dict[str, float | None]:
    signal, noise = dict.fromkeys(names, 0.0), dict.fromkeys(names, 0.0)
    options: dict[str, Any] = {"custom_ops": job.options.custom_ops, "threads": job.options.threads}
    exact = capture(job.prepared.model, names, feeds, job.work / "exact.onnx", **options)
    quantized = capture(
        portable, names, feeds, job.work / "rounded.onnx", optimize=False, **options
    )
    for wanted, got in zip(exact, quantized, strict=True):
        for name in names:
            a, b = np.asarray(wanted[name]), np.asarray(got[name])
            if a.shape != b.shape or not a.size:
                continue
            a64 = a.astype(np.float64)
            with np.errstate(invalid="ignore"):  # a mask's infinities, which are left out
                error = a64 - b.astype(np.float64)
            finite = np.isfinite(error)
            signal[name] += float(np.sum(np.square(a64, where=finite, out=np.zeros_like(a64))))
            noise[name] += float(np.sum(np.square(error, where=finite, out=np.zeros_like(a64))))
    return {n: rounded(db(signal[n], noise[n])) for n in names if signal[n] > 0.0}
