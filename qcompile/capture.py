"""Runs a model over samples and hands out what its inner tensors hold, one sample at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import onnx_ir as oir

from qcompile.backends.ort import open_session
from qcompile.data.inputs import Feed
from qcompile.ir.errors import CalibrationError, ModelError
from qcompile.ir.graph import drop_unused
from qcompile.ir.save import save_model

__all__ = ["capture"]


def capture(
    model: oir.Model,
    tensors: Sequence[str],
    feeds: Iterable[Feed],
    path: Path,
    *,
    custom_ops: Path | None = None,
    optimize: bool = True,
    threads: int | None = None,
) -> Iterator[Feed]:
    """For each feed, the arrays of ``tensors`` by name; only one sample's are alive at a time.

    What none of them depends on is not computed.

    Args:
        model: stays as it is.
        tensors: of the main graph; its inputs may be among them.
        feeds: each with every input of the model.
        path: where the instrumented model is written.
        custom_ops: library with custom operators.
        optimize: let ONNX Runtime optimize; False runs Q/DQ pairs as they are written.
        threads: inside operators; None is ONNX Runtime's choice.

    Raises:
        CalibrationError: a tensor is not in the graph, or a feed does not run.
    """
    work = model.clone()
    graph = work.graph
    inputs = {value.name for value in graph.inputs}
    made = {value.name: value for node in graph for value in node.outputs if value.name}
    inner = [name for name in dict.fromkeys(tensors) if name not in inputs]
    for name in inner:
        if name not in made:
            raise CalibrationError(f"tensor '{name}' is not in the main graph, so nothing holds it")
    if not inner:
        for feed in feeds:
            yield {name: feed[name] for name in tensors}
        return
    graph.outputs.clear()
    graph.outputs.extend(made[name] for name in inner)
    drop_unused(work)
    save_model(work, path)
    session = open_session(
        path,
        threads=threads,
        custom_ops=custom_ops,
        variable_shapes=True,
        keep_arena=True,
        optimize=optimize,
    )
    wanted = [port.name for port in session.inputs]
    for index, feed in enumerate(feeds):
        try:
            values = session.run({name: feed[name] for name in wanted}, inner)
        except (ModelError, KeyError) as e:
            raise CalibrationError(f"sample {index} does not run: {e}") from e
        yield {name: feed[name] if name in inputs else values[name] for name in tensors}
