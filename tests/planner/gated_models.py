"""A tiny prepared model with what gating must cope with, and its states under the target."""

import numpy as np
import onnx
import onnx.parser
import onnx_ir as oir

from qcompile.backends.tables import get_target
from qcompile.ir.affine import TensorRange
from qcompile.ir.graph import set_origin
from qcompile.ir.manager import CompileState, PassManager
from qcompile.ir.plan import FLOAT, INT8, LayerChoice, PrecisionPlan
from qcompile.ir.save import model_bytes
from qcompile.passes.insert_qdq import InsertQDQ
from qcompile.passes.integer_region import observed_tensors
from qcompile.passes.quantizable import Site, classify
from qcompile.planner.units import full_plan

# Conv with Relu (absorbed), a residual Add, a mover with two outputs of which one is read in float,
# MatMul (can write float), a float-only Softmax between integer nodes.
MIXED = """
<ir_version: 8, opset_import: ["" : 17]>
mixed (float[1, 3, 8, 8] x) => (float[1, 4, 10] y, float[1, 2, 64] z)
<float[4, 3, 3, 3] w1, float[4] b1, float[4, 4, 1, 1] w2, float[64, 10] m, int64[3] shape>
{
   c1 = Conv <pads: ints = [1, 1, 1, 1]> (x, w1, b1)
   r1 = Relu (c1)
   c2 = Conv (r1, w2)
   sum = Add (c2, r1)
   flat = Reshape (sum, shape)
   first, z = Split <axis: int = 1> (flat)
   p = Softmax (flat)
   both = Add (p, flat)
   y = MatMul (both, m)
}
"""


def parse(text: str, seed: int = 0) -> oir.Model:
    """The model with random weights and every node's name (its operator and number) as origin."""
    proto = onnx.parser.parse_model(text)
    rng = np.random.default_rng(seed)
    for declared in proto.graph.value_info:  # what stands in <...> without values
        kind = declared.type.tensor_type
        values = rng.normal(0, 0.4, [d.dim_value for d in kind.shape.dim]).astype(np.float32)
        if kind.elem_type == onnx.TensorProto.INT64:
            values = np.array([1, 4, 64], np.int64)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(values, declared.name))
    del proto.graph.value_info[:]
    model = oir.from_proto(onnx.shape_inference.infer_shapes(proto))
    counts: dict[str, int] = {}
    for node in model.graph:
        counts[node.op_type] = counts.get(node.op_type, 0) + 1
        node.name = f"{node.op_type}{counts[node.op_type]}"
        set_origin(node, [node.name])
    return model


def state_of(model: oir.Model) -> tuple[CompileState, list[Site]]:
    """The state with every site int8 that can be, and ranges of -4 to 4 everywhere."""
    state = CompileState(model, get_target("ort-int8"))
    sites = classify(state)
    names = observed_tensors(sites)
    state.ranges = {n: TensorRange(np.array(-4.0), np.array(4.0)) for n in names}
    state.plan = full_plan(sites)
    return state, sites


def quantized(state: CompileState, integer: set[str] | None = None) -> oir.Model:
    """Really quantized: all sites of the state's plan, or only some origins."""
    plan = state.plan
    if plan is not None and integer is not None:
        plan = PrecisionPlan(
            tuple(
                LayerChoice(c.origin, c.op_type, INT8 if c.origin in integer else FLOAT, "")
                for c in plan.layers
            )
        )
    copy = CompileState(state.model.clone(), state.target, dict(state.ranges), plan=plan)
    PassManager([InsertQDQ()]).run(copy)
    return copy.model


def feeds(count: int = 2, shape: tuple[int, ...] = (1, 3, 8, 8)) -> list[dict[str, np.ndarray]]:
    """Random inputs called x."""
    rng = np.random.default_rng(7)
    return [{"x": rng.normal(0, 1, shape).astype(np.float32)} for _ in range(count)]


def serialized(model: oir.Model) -> bytes:
    """For a session."""
    return model_bytes(model)
