"""One call for the three assertions that every pass owes: structure, numbers, idempotence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
import onnx.parser
import onnx_ir as oir
import onnxruntime as ort

from qcompile.ir.manager import CompileState, Pass, PassManager, PassRecord
from qcompile.ir.spec import QuantSpec
from qcompile.ir.target import Target

Feed = Mapping[str, np.ndarray]

TARGET = Target(
    name="test",
    backend="none",
    device="none",
    activation=QuantSpec("uint8", symmetric=False),
    weight=QuantSpec("int8", symmetric=True),
    ops={},
)


def parse(text: str, **arrays: np.ndarray) -> onnx.ModelProto:
    """A model from ONNX text, types inferred; ``arrays`` fill initializers declared in the text."""
    model = onnx.parser.parse_model(text)
    for name, array in arrays.items():
        held = next((t for t in model.graph.initializer if t.name == name), None)
        if held is not None:
            model.graph.initializer.remove(held)
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return onnx.shape_inference.infer_shapes(model, data_prop=True)


def state_of(model: onnx.ModelProto | oir.Model) -> CompileState:
    """A state whose nodes have names and origin ids (``Op_index`` where unnamed)."""
    loaded = oir.from_proto(model) if isinstance(model, onnx.ModelProto) else model
    for index, node in enumerate(loaded.graph):
        node.name = node.name or f"{node.op_type}_{index}"
        node.metadata_props.setdefault("qcompile.origin", node.name)
    return CompileState(loaded, TARGET)


def run(model: onnx.ModelProto | oir.Model, feed: Feed) -> list[np.ndarray]:
    """Outputs in ONNX Runtime without its own optimizations."""
    proto = oir.to_proto(model) if isinstance(model, oir.Model) else model
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = ort.InferenceSession(proto.SerializeToString(), options, ["CPUExecutionProvider"])
    return list(session.run(None, dict(feed)))


def random_feed(model: onnx.ModelProto, seed: int = 0, size: int = 2) -> dict[str, np.ndarray]:
    """Normal floats (small integers for integer inputs); unknown dimensions become ``size``."""
    rng = np.random.default_rng(seed)
    initializers = {t.name for t in model.graph.initializer}
    feed = {}
    for value in model.graph.input:
        if value.name in initializers:
            continue
        kind = value.type.tensor_type
        shape = [d.dim_value or size for d in kind.shape.dim]
        dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)
        draw = rng.normal(size=shape) * 3 if dtype.kind == "f" else rng.integers(0, 3, shape)
        feed[value.name] = draw.astype(dtype)
    return feed


def ops(model: oir.Model) -> list[str]:
    """Operators of the main graph in order."""
    return [node.op_type for node in model.graph]


def check_passes(
    model: onnx.ModelProto,
    passes: Sequence[Pass] | Pass,
    expect: Sequence[str] | None = None,
    *,
    feed: Feed | None = None,
    rtol: float = 1e-5,
    atol: float = 1e-6,
    notes: Sequence[str] = (),
    changed: bool | None = None,
) -> oir.Model:
    """Run passes and assert structure, numbers, names, and that a second run changes nothing.

    Args:
        model: before.
        passes: one or several, run under the verifying manager.
        expect: operators afterwards, in order; None to skip.
        feed: inputs; random when None (a second seed and batch 3 are tried too).
        rtol: relative tolerance of the outputs.
        atol: absolute tolerance, times the largest output.
        notes: texts that must each occur in some note.
        changed: whether anything must have changed.

    Returns:
        The rewritten model.
    """
    every = [passes] if isinstance(passes, Pass) else list(passes)
    state = state_of(model)
    ids = {
        one for n in state.model.graph for one in n.metadata_props["qcompile.origin"].split("\n")
    }
    records = _run(state, every)
    after = state.model
    if expect is not None:
        assert ops(after) == list(expect), f"{ops(after)} != {list(expect)}"
    said = [note.text for record in records for note in record.notes]
    for text in notes:
        assert any(text in one for one in said), f"no note says '{text}': {said}"
    if changed is not None:
        assert bool(sum(r.changed for r in records)) == changed, said
    kept = [n.metadata_props.get("qcompile.origin", "").split("\n") for n in after.graph]
    found = [one for many in kept for one in many if one]
    assert set(found) <= ids, "an origin id was made up"
    assert len({many[0] for many in kept if many[0]}) == sum(bool(m[0]) for m in kept), (
        "anchors repeat"
    )
    names = [n.name for n in after.graph]
    assert len(set(names)) == len(names), f"node names repeat: {names}"
    proto = oir.to_proto(after)
    assert [o.name for o in proto.graph.output] == [o.name for o in model.graph.output]
    assert [i.name for i in proto.graph.input] == [i.name for i in model.graph.input]
    onnx.checker.check_model(proto)
    feeds = [feed] if feed is not None else [random_feed(model, 0), random_feed(model, 1, 3)]
    for one in feeds:
        for want, have in zip(run(model, one), run(after, one), strict=True):
            np.testing.assert_allclose(
                have, want, rtol=rtol, atol=atol * max(1.0, float(np.abs(want).max(initial=0)))
            )
    again = CompileState(after, TARGET)
    assert not sum(r.changed for r in _run(again, every)), "a second run still changes something"
    return after


def _run(state: CompileState, passes: Sequence[Pass]) -> list[PassRecord]:
    manager = PassManager(passes)
    manager.run(state)
    return manager.records
