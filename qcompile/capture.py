"""Runs a model over samples and hands out what its inner tensors hold, one sample at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import onnx_ir as oir

from qcompile.backends.ort import open_session
from qcompile.data.inputs import Feed
from qcompile.ir.errors import CalibrationError, ModelError
from qcompile.ir.graph import drop_unused, fresh_name
from qcompile.ir.save import save_model
from qcompile.parts import LARGE, Constant, Nodes, Part
from qcompile.sizes import LOADED_WHOLE

__all__ = ["capture", "runner", "tensor_sizes"]

Run = Callable[[Feed, Sequence[str]], Feed]


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
    inputs = {value.name for value in model.graph.inputs}
    inner = [name for name in dict.fromkeys(tensors) if name not in inputs]
    if not inner:
        for feed in feeds:
            yield {name: feed[name] for name in tensors}
        return
    work = model.clone()
    made = _made(work, inner)
    work.graph.outputs.clear()
    work.graph.outputs.extend(dict.fromkeys([*made, *_caches(work.graph)]))
    drop_unused(work)
    run = runner(work, path, threads=threads, custom_ops=custom_ops, optimize=optimize)
    for index, feed in enumerate(feeds):
        values = _run(run, feed, inner, index)
        yield {name: feed[name] if name in inputs else values[name] for name in tensors}


def tensor_sizes(
    model: oir.Model,
    tensors: Sequence[str],
    feed: Feed,
    path: Path,
    *,
    custom_ops: Path | None = None,
) -> dict[str, int]:
    """Bytes of each tensor when ``feed`` runs; none of them leaves the runtime for that.

    Raises:
        CalibrationError: a tensor is not in the graph, or the feed does not run.
    """
    inputs = {value.name for value in model.graph.inputs}
    sizes = {name: feed[name].nbytes for name in tensors if name in inputs}
    inner = [name for name in dict.fromkeys(tensors) if name not in inputs]
    if not inner:
        return sizes
    work = model.clone()
    graph = work.graph
    made = _made(work, inner)
    graph.outputs.clear()
    for value in made:
        result = oir.Value(
            name=fresh_name(graph, f"{value.name}_size"),
            type=oir.TensorType(oir.DataType.INT64),
            shape=oir.Shape([]),
        )
        graph.append(oir.Node("", "Size", [value], outputs=[result]))
        graph.outputs.append(result)
    names = [value.name or "" for value in graph.outputs]
    graph.outputs.extend(_caches(graph))
    drop_unused(work)
    found = _run(runner(work, path, custom_ops=custom_ops), feed, names, 0)
    for value, name in zip(made, names, strict=True):
        sizes[value.name or ""] = int(
            int(found[name]) * (value.dtype.itemsize if value.dtype else 4)
        )
    return sizes


def _caches(graph: oir.Graph) -> list[oir.Value]:
    """Grown caches of opset 23's Attention: ONNX Runtime runs none on a past without giving them out."""
    return [
        value
        for node in graph
        if (node.op_type, node.domain) == ("Attention", "")
        for value, past in zip(node.outputs[1:3], node.inputs[4:6], strict=False)
        if value.name and past is not None
    ]


def _made(model: oir.Model, names: Sequence[str]) -> list[oir.Value]:
    found = {value.name: value for node in model.graph for value in node.outputs if value.name}
    for name in names:
        if name not in found:
            raise CalibrationError(f"tensor '{name}' is not in the main graph, so nothing holds it")
    return [found[name] for name in names]


def runner(
    model: oir.Model,
    path: Path,
    *,
    threads: int | None = None,
    custom_ops: Path | None = None,
    optimize: bool = True,
) -> Run:
    """What runs a graph made for a look inside: feed, names of outputs -> arrays.

    Large float weights are handed over where they lie; with other large ones it is written to ``path``.
    """
    sizes = [
        (t.nbytes, t.nbytes >= LARGE and t.dtype == oir.DataType.FLOAT)
        for value in model.graph.initializers.values()
        if (t := value.const_value) is not None
    ]
    handed = sum(size for size, large in sizes if large)
    inside = sum(size for size, large in sizes if not large)
    options: dict[str, Any] = {"threads": threads, "custom_ops": custom_ops, "optimize": optimize}
    if handed < LOADED_WHOLE or inside >= LOADED_WHOLE:
        save_model(model, path, external_above=LOADED_WHOLE)
        session = open_session(path, variable_shapes=True, keep_arena=True, **options)
        inputs = [port.name for port in session.inputs]
        return lambda feed, names: session.run({n: feed[n] for n in inputs}, names)
    whole, parts = Nodes.of(model), list[Part]()
    constants: dict[str, Constant] = {
        name: value.const_value
        for name, value in model.graph.initializers.items()
        if value.const_value is not None
    }
    made = {value.name for node in model.graph for value in node.outputs}

    def run(feed: Feed, names: Sequence[str]) -> Feed:
        if not parts:
            kept = [n for value in model.graph.outputs if (n := value.name or "") in made]
            parts.append(Part(whole, whole.nodes, constants, feed, kept, **options))
        found = parts[0].run(feed)
        return {name: found[name] if name in found else feed[name] for name in names}

    return run


def _run(run: Run, feed: Feed, outputs: Sequence[str], index: int) -> Feed:
    try:
        return run(feed, outputs)
    except (ModelError, KeyError, CalibrationError) as e:
        raise CalibrationError(f"sample {index} does not run: {e}") from e
