"""The largest absolute value of every float tensor, found inside the graph so that no tensor crosses over."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx_ir as oir

from qcompile.backends.ort import open_session
from qcompile.data.inputs import Feed
from qcompile.ir.affine import TensorRange
from qcompile.ir.graph import fresh_name
from qcompile.ir.save import save_model

__all__ = ["float_peaks"]


def float_peaks(
    model: oir.Model, feeds: Sequence[Feed], work: Path, custom_ops: Path | None = None
) -> dict[str, TensorRange]:
    """Tensor name -> symmetric range over ``feeds``; infinite where a tensor holds NaN or infinity."""
    probed = model.clone()
    graph = probed.graph
    values = [*graph.inputs, *(v for node in list(graph) for v in node.outputs)]
    names: dict[str, str] = {}
    for value in values:
        if value.dtype != oir.DataType.FLOAT or not value.name:
            continue
        size = oir.node("Abs", [value], name=fresh_name(graph, f"{value.name}/abs"))
        size.outputs[0].name = fresh_name(graph, f"{value.name}_abs")
        peak = oir.node(
            "ReduceMax",
            [size.outputs[0]],
            {"keepdims": 0},
            name=fresh_name(graph, f"{value.name}/peak"),
        )
        out = peak.outputs[0]
        out.name = fresh_name(graph, f"{value.name}_peak")
        out.type = oir.TensorType(oir.DataType.FLOAT)
        graph.extend([size, peak])
        graph.outputs.append(out)
        names[out.name] = value.name
    path = work / "peaks.onnx"
    save_model(probed, path)
    session = open_session(path, custom_ops=custom_ops, variable_shapes=True)
    found = dict.fromkeys(names.values(), 0.0)
    for feed in feeds:
        for out_name, peak_value in session.run(feed, list(names)).items():
            seen = float(np.max(peak_value)) if np.size(peak_value) else 0.0
            seen = seen if np.isfinite(seen) else np.inf
            found[names[out_name]] = max(found[names[out_name]], seen)
    return {
        name: TensorRange(np.asarray(-peak), np.asarray(peak), "peak")
        for name, peak in found.items()
    }
