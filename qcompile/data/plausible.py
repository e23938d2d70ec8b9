"""Whether data look like what a model's input was made for; what speaks against it, in words.

Two things are known without labels: pictures in whole numbers up to 255 need a model that scales them,
and a batch norm stores mean and variance of what it saw in training.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as oir

from qcompile.backends.ort import open_session
from qcompile.data.inputs import Feed
from qcompile.ir.errors import ModelError
from qcompile.ir.graph import constant
from qcompile.ir.save import save_model

__all__ = ["doubts"]

FIRST = 3
"""Batch norms that are looked at: the first ones follow the input most closely."""

FAR = 5.0
"""Standard deviations by which the middle channel's mean may differ from training's."""

SPREAD = 100.0
"""Times by which the middle channel's variance may differ."""

_MOVES = frozenset({"Cast", "Transpose", "Reshape", "Identity", "Squeeze", "Unsqueeze", "Pad"})
_SCALES = frozenset({"Mul", "Div", "Sub", "Add", "BatchNormalization", "InstanceNormalization"})


def doubts(
    model: oir.Model, feeds: Sequence[Feed], work: Path, custom_ops: Path | None = None
) -> tuple[str, ...]:
    """What speaks against these samples, one clause each; nothing where nothing does.

    Args:
        model: the user's model as loaded, batch norms unfolded.
        feeds: a few samples.
        work: a temporary folder.
        custom_ops: library with custom operators.
    """
    if not feeds:
        return ()
    told = [text for value in model.graph.inputs if (text := _picture(value, feeds))]
    told += [text for value in model.graph.inputs if (text := _alike(value, feeds))]
    told += _norms(model, feeds, work, custom_ops)
    return tuple(told)


def _picture(value: oir.Value, feeds: Sequence[Feed]) -> str:
    """Whole numbers up to 255 into a model that does not scale them."""
    name = value.name or ""
    arrays = [feed[name] for feed in feeds if name in feed]
    if not arrays or any(a.ndim != 4 or a.dtype.kind != "f" or not a.size for a in arrays):
        return ""
    high, low = max(float(a.max()) for a in arrays), min(float(a.min()) for a in arrays)
    whole = all(np.array_equal(a, np.rint(a)) for a in arrays)
    if not (whole and 16 < high <= 255 and low >= 0) or _scaled(value):
        return ""
    return (
        f"input '{name}' holds whole numbers from {low:.0f} to {high:.0f} and the model does not scale "
        "them: if it was trained on 0 to 1, divide by 255 (--preprocess)"
    )


def _scaled(value: oir.Value, depth: int = 6) -> bool:
    """Whether the model itself brings an input to another scale before its first layer."""
    for use in value.uses():
        kind = use.node.op_type
        if kind in _SCALES:
            return True
        if kind in _MOVES and depth and any(_scaled(v, depth - 1) for v in use.node.outputs):
            return True
    return False


def _alike(value: oir.Value, feeds: Sequence[Feed]) -> str:
    """The same picture again and again calibrates nothing."""
    name = value.name or ""
    arrays = [feed[name] for feed in feeds if name in feed]
    large = [a for a in arrays if a.dtype.kind == "f" and a.size > 64]
    if len(large) < 2 or len(large) < len(arrays):
        return ""
    if any(a.shape != large[0].shape or not np.array_equal(a, large[0]) for a in large):
        return ""
    if not np.any(large[0]):
        return ""  # state and masks that start at zero
    return f"input '{name}' is the same in all {len(large)} samples that were looked at"


def _norms(
    model: oir.Model, feeds: Sequence[Feed], work: Path, custom_ops: Path | None
) -> list[str]:
    """Means and variances at the first batch norms, beside those that training stored in them."""
    nodes = [
        node
        for node in model.graph
        if node.op_type == "BatchNormalization"
        and all(constant(node.inputs[i]) is not None for i in (3, 4))
        and not node.attributes.get_int("training_mode", 0)
    ][:FIRST]
    read = [node.inputs[0].name or "" for node in nodes if node.inputs[0] is not None]
    if not nodes or len(read) < len(nodes):
        return []
    try:
        seen = _moments(model, read, feeds, work, custom_ops)
    except ModelError:
        return []  # what does not run is told by calibration, which names the sample
    for node, name in zip(nodes, read, strict=True):
        mean, variance = (np.asarray(constant(node.inputs[i]), np.float64) for i in (3, 4))
        if name not in seen or seen[name][0].shape != mean.shape:
            continue
        found, spread = seen[name]
        away = float(np.median(np.abs(found - mean) / np.sqrt(variance + 1e-12)))
        ratio = float(np.median((spread + 1e-12) / (variance + 1e-12)))
        if away > FAR or not 1 / SPREAD < ratio < SPREAD:
            return [
                f"the data are unlike those of training: at batch norm '{node.name}' the mean is off by "
                f"{away:.3g} standard deviations and the variance {ratio:.3g} times that of training; "
                "check scaling, mean and colour order (--preprocess)"
            ]
    return []


def _moments(
    model: oir.Model,
    names: Sequence[str],
    feeds: Sequence[Feed],
    work: Path,
    custom_ops: Path | None,
) -> Mapping[str, tuple[np.ndarray, np.ndarray]]:
    """Name -> mean and variance of each channel."""
    probed = model.clone()
    inputs = {v.name for v in probed.graph.inputs}
    values = {v.name: v for node in probed.graph for v in node.outputs}
    asked = [n for n in dict.fromkeys(names) if n not in inputs and n in values]
    held = {v.name for v in probed.graph.outputs}
    for name in asked:
        if name not in held:
            probed.graph.outputs.append(values[name])
    path = work / "norms.onnx"
    save_model(probed, path)
    session = open_session(path, custom_ops=custom_ops, variable_shapes=True)
    sums: dict[str, list[np.ndarray]] = {}
    for feed in feeds:
        found = session.run(feed, asked) if asked else {}
        found |= {name: feed[name] for name in names if name in inputs}
        for name, array in found.items():
            wide = np.moveaxis(array.astype(np.float64), 1, 0).reshape(array.shape[1], -1)
            row = np.stack([wide.mean(axis=1), np.square(wide).mean(axis=1)])
            sums.setdefault(name, []).append(row)
    moments = {name: np.mean(rows, axis=0) for name, rows in sums.items()}
    return {name: (m[0], np.maximum(m[1] - np.square(m[0]), 0.0)) for name, m in moments.items()}
