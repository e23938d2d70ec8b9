"""Q/DQ graphs as text, and what a lowering test asks of them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as oir
import onnxruntime as ort

from qcompile.backends.ort_lower import LowerResult, lower_ort
from qcompile.ir.plan import PrecisionPlan
from qcompile.ir.verify import verify

HEADER = '<ir_version: 8, opset_import: ["" : 17, "com.microsoft" : 1]>'


def parse(text: str, opset: int = 17, foreign: bool = False) -> oir.Model:
    """A model from the text of its graph; node names are made from the output names.

    ``foreign``: the Q/DQ nodes came with the user's model, so they have origins as all nodes do.
    """
    header = HEADER.replace('"" : 17', f'"" : {opset}')
    proto = onnx.parser.parse_model(header + text)
    for node in proto.graph.node:
        node.name = node.name or f"n_{node.output[0]}"
    onnx.checker.check_model(proto)
    proto = onnx.shape_inference.infer_shapes(proto)
    model = oir.from_proto(proto)
    for ir_node in model.graph:
        if ir_node.op_type in ("QuantizeLinear", "DequantizeLinear") and not foreign:
            continue
        ir_node.metadata_props["qcompile.origin"] = ir_node.name or ""
    return model


def run(
    model: oir.Model, feeds: dict[str, npt.NDArray[np.generic]], *, optimize: bool = True
) -> list[npt.NDArray[np.generic]]:
    """Outputs in ONNX Runtime; ``optimize=False`` emulates the Q/DQ nodes one by one."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    if not optimize:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    data = oir.to_proto(model).SerializeToString()
    session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    outputs: list[npt.NDArray[np.generic]] = session.run(None, feeds)
    return outputs


def feeds_for(model: oir.Model, seed: int = 0) -> dict[str, npt.NDArray[np.generic]]:
    """Values in -1.9 to 1.9 for float inputs, small integers and booleans for others."""
    rng = np.random.default_rng(seed)
    feeds: dict[str, npt.NDArray[np.generic]] = {}
    for value in model.graph.inputs:
        assert value.shape is not None and value.dtype is not None and value.name is not None
        shape = [d if isinstance(d, int) else 2 for d in value.shape]
        if value.dtype == oir.DataType.FLOAT:
            feeds[value.name] = rng.uniform(-1.9, 1.9, shape).astype(np.float32)
        else:
            feeds[value.name] = rng.integers(0, 2, shape).astype(value.dtype.numpy())
    return feeds


def lowered(
    model: oir.Model, step: float | None, plan: PrecisionPlan | None = None, seed: int = 0
) -> LowerResult:
    """Lower, verify, and compare with the emulated Q/DQ graph: at most ``step`` apart anywhere.

    ``step=None`` for what became float and so differs by its quantization: the runtime's optimizer
    must then change nothing.
    """
    before = oir.to_proto(model).SerializeToString(deterministic=True)
    result = lower_ort(model, plan)
    assert oir.to_proto(model).SerializeToString(deterministic=True) == before
    verify(result.model)
    onnx.checker.check_model(oir.to_proto(result.model))
    names = [n.name for n in result.model.graph]
    assert len(names) == len(set(names))
    feeds = feeds_for(model, seed)
    expected = run(model if step is not None else result.model, feeds, optimize=False)
    for optimize in (False, True):
        for want, got in zip(expected, run(result.model, feeds, optimize=optimize), strict=True):
            assert want.shape == got.shape and want.dtype == got.dtype
            np.testing.assert_allclose(got, want, rtol=1e-5, atol=1.001 * (step or 1e-5))
    again = lower_ort(result.model, plan)
    assert ops(again.model) == ops(result.model)
    return result


def ops(model: oir.Model) -> list[str]:
    """Operators in graph order."""
    return [node.op_type for node in model.graph]
