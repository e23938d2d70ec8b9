"""Float models as text, made into Q/DQ models the way a compile does it, and run in ONNX Runtime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import onnx
import onnx.parser
import onnx_ir as oir
import onnxruntime as ort

from qcompile.backends.tables import get_target
from qcompile.ir.affine import TensorRange
from qcompile.ir.graph import set_origin
from qcompile.ir.manager import CompileState, PassManager
from qcompile.ir.plan import INT8, PrecisionPlan
from qcompile.ir.target import Target
from qcompile.passes.insert_qdq import InsertQDQ
from qcompile.passes.integer_region import observed_tensors
from qcompile.passes.quantizable import classify
from qcompile.planner.default import default_plan

Array = npt.NDArray[np.generic]
Feed = dict[str, Array]

VNNI = get_target("ort-int8", "x86-vnni")

RNG = np.random.default_rng(3)
W1 = (RNG.standard_normal((4, 3, 3, 3)) * 0.3).astype(np.float32)
W2 = (RNG.standard_normal((4, 4, 3, 3)) * 0.3).astype(np.float32)
B1 = RNG.standard_normal(4).astype(np.float32)
M = (RNG.standard_normal((8, 8)) * 0.3).astype(np.float32)

TWO_CONVS = """
g (float[1,3,8,8] x) => (float[1,4,4,4] y) {
  a = Conv (x, w1, b1)
  r = Relu (a)
  y = Conv (r, w2)
}"""


def text_model(graph: str, opset: int = 17, **arrays: Array) -> onnx.ModelProto:
    """A model from the text of its graph; ``arrays`` become initializers."""
    proto = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : {opset}]> {graph}')
    for name, array in arrays.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    for node in proto.graph.node:
        node.name = node.name or f"n_{node.output[0]}"
    onnx.checker.check_model(proto)
    return onnx.shape_inference.infer_shapes(proto)


def state_of(
    proto: onnx.ModelProto, target: Target = VNNI, *, calibrate: bool = True
) -> CompileState:
    """A state with origin ids, and the ranges of one random batch."""
    model = oir.from_proto(proto)
    for node in model.graph:
        set_origin(node, [node.name or ""])
    state = CompileState(model, target)
    if calibrate:
        state.ranges = ranges_of(proto, observed_tensors(classify(state)))
    return state


def ranges_of(proto: onnx.ModelProto, names: Sequence[str]) -> dict[str, TensorRange]:
    """Lowest and highest value of tensors over one random batch."""
    probe = onnx.ModelProto()
    probe.CopyFrom(proto)
    have = {o.name for o in probe.graph.output} | {i.name for i in probe.graph.input}
    for name in names:
        if name not in have:
            probe.graph.output.append(onnx.helper.make_tensor_value_info(name, 1, None))
    feed = feed_for(proto)
    values = {
        **feed,
        **dict(zip([o.name for o in probe.graph.output], run(probe, feed), strict=True)),
    }
    return {
        name: TensorRange(np.asarray(values[name].min()), np.asarray(values[name].max()))
        for name in names
    }


def feed_for(proto: onnx.ModelProto, seed: int = 0) -> Feed:
    """Normal values for float inputs, booleans and small integers for others; unknown dims are 2."""
    rng = np.random.default_rng(seed)
    feed: Feed = {}
    for value in proto.graph.input:
        kind = value.type.tensor_type
        shape = [d.dim_value or 2 for d in kind.shape.dim]
        dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)
        feed[value.name] = (
            rng.standard_normal(shape).astype(dtype)
            if dtype.kind == "f"
            else rng.integers(0, 2, shape).astype(dtype)
        )
    return feed


def everything_int8(state: CompileState) -> PrecisionPlan:
    """A plan that asks int8 of every node, wherever it stands."""
    plan = default_plan(state)
    return PrecisionPlan(tuple(replace(layer, precision=INT8) for layer in plan.layers))


def insert(state: CompileState) -> onnx.ModelProto:
    """Run ``InsertQDQ``; the result passes the checker, and a second run changes nothing."""
    manager = PassManager([InsertQDQ()])
    manager.run(state)
    proto = oir.to_proto(state.model)
    onnx.checker.check_model(proto, full_check=True)
    text = proto.SerializeToString(deterministic=True)
    again = PassManager([InsertQDQ()])
    again.run(state)
    assert again.records[0].changed == 0
    assert oir.to_proto(state.model).SerializeToString(deterministic=True) == text
    return proto


def run(
    proto: onnx.ModelProto, feed: Mapping[str, Array], level: str = "ORT_DISABLE_ALL"
) -> list[Array]:
    """Outputs in ONNX Runtime at an optimization level."""
    options = ort.SessionOptions()
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, level)
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = ort.InferenceSession(
        proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return list(session.run(None, dict(feed)))


def ops(proto: onnx.ModelProto) -> list[str]:
    """Operators in order, Q and DQ for the quantization nodes."""
    short = {"QuantizeLinear": "Q", "DequantizeLinear": "DQ"}
    return [short.get(node.op_type, node.op_type) for node in proto.graph.node]


def node_named(proto: onnx.ModelProto, name: str) -> onnx.NodeProto:
    """The node of that name."""
    return next(node for node in proto.graph.node if node.name == name)


def initializers(proto: onnx.ModelProto) -> dict[str, Array]:
    """Initializers by name."""
    return {t.name: onnx.numpy_helper.to_array(t) for t in proto.graph.initializer}


def sqnr_db(want: Array, have: Array) -> float:
    """10 log10(signal / noise)."""
    noise = float(np.sum((want.astype(np.float64) - have.astype(np.float64)) ** 2))
    return float(10 * np.log10(np.sum(want.astype(np.float64) ** 2) / max(noise, 1e-30)))
