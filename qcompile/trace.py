"""Concrete shapes of tensors for one feed: inferred, or read inside the graph, so that none crosses over."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx_ir as oir

from qcompile.capture import runner
from qcompile.data.inputs import Feed
from qcompile.ir.graph import fresh_name
from qcompile.ir.macs import macs
from qcompile.ir.shapes import infer_shapes
from qcompile.segmented import SegmentedSession

__all__ = ["mac_counts", "shapes_seen"]


def shapes_seen(
    model: oir.Model,
    tensors: Sequence[str],
    feed: Feed,
    work: Path,
    custom_ops: Path | None = None,
    *,
    part: int | None = None,
) -> dict[str, tuple[int, ...]]:
    """Tensor name -> shape when ``model`` (left as it is) runs on ``feed``.

    With ``part`` it runs in parts with so many bytes of weights, which stay where they are mapped.
    """
    probed = model.clone()
    wanted = set(tensors)
    values = {v.name: v for n in probed.graph for v in n.outputs if v.name in wanted} | {
        v.name: v for v in probed.graph.inputs if v.name in wanted
    }
    names: dict[str, str] = {}
    for name, value in values.items():
        if name is None:
            continue
        node = oir.node("Shape", [value], name=fresh_name(probed.graph, f"{name}/shape"))
        out = node.outputs[0]
        out.name = fresh_name(probed.graph, f"{name}_shape_seen")
        out.type = oir.TensorType(oir.DataType.INT64)
        producer = value.producer()
        if producer is None:
            probed.graph.insert_before(next(iter(probed.graph)), node)
        else:  # right behind it, so that the tensor need not live until the end
            probed.graph.insert_after(producer, node)
        probed.graph.outputs.append(out)
        names[out.name] = name
    if not names:
        return {}
    if part is not None:
        probed.graph.outputs[:] = [v for v in probed.graph.outputs if v.name in names]
        parts = SegmentedSession(probed, [feed], work / "shapes", part, custom_ops=custom_ops)
        found = parts.run(feed, list(names))
        return {names[k]: tuple(int(d) for d in v) for k, v in found.items()}
    run = runner(probed, work / "shapes.onnx", custom_ops=custom_ops)
    found = run(feed, list(names))
    return {names[k]: tuple(int(d) for d in v) for k, v in found.items()}


def _inferred(model: oir.Model, feed: Feed) -> dict[str, tuple[int, ...]]:
    """Shapes that follow from those of the feed: of most exported models all, in a tenth of a run."""
    bound = model.clone()
    for node in bound.graph:
        for value in node.outputs:
            value.shape = None
    for value in bound.graph.inputs:
        if value.name in feed:
            value.shape = oir.Shape(np.shape(feed[value.name]))
    infer_shapes(bound)
    values = (v for node in bound.graph for v in (*node.inputs, *node.outputs) if v is not None)
    return {
        v.name: tuple(v.shape.numpy()) for v in values if v.name and v.shape and v.shape.is_static()
    }


def mac_counts(
    model: oir.Model,
    feed: Feed,
    work: Path,
    custom_ops: Path | None = None,
    *,
    part: int | None = None,
) -> dict[oir.Node, int]:
    """MACs of every node of the main graph that has any, for the shapes of ``feed``.

    ``part`` as in ``shapes_seen``.
    """
    having = [n for n in model.graph if macs(n) != 0]
    known = {
        v.name: t.numpy().shape for v in model.graph.initializers.values() if (t := v.const_value)
    }
    tensors = [v.name for n in having for v in (*n.inputs, *n.outputs) if v is not None and v.name]
    shapes = {k: s for k, s in known.items() if k} | _inferred(model, feed)
    unknown = [name for name in tensors if name not in shapes]
    if unknown:
        shapes |= shapes_seen(model, unknown, feed, work, custom_ops, part=part)
    return {n: macs(n, shapes) or 0 for n in having}
