"""Instrumentation of a graph: what it adds, on every opset, and what it refuses."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import onnx_ir as oir
import onnxruntime as ort
import pytest

from qcompile.ir.errors import CalibrationError
from qcompile.ir.verify import verify
from qcompile.passes.observe_tensors import STARTS, STRIDES, observable, observe_tensors


def parse(text: str) -> oir.Model:
    proto = onnx.shape_inference.infer_shapes(onnx.parser.parse_model(text))
    return oir.from_proto(proto)


def session(model: oir.Model) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(oir.to_proto(model).SerializeToString(), options)


CHAIN = """<ir_version: 4, opset_import: ["" : {opset}]>
g (float[n,6] x) => (float[n,6] z) {{
    y = Relu(x)
    w = Neg(y)
    z = Exp(w)
}}"""


@pytest.mark.parametrize("opset", [9, 10, 11, 13, 17, 18, 21])
def test_limits_sums_and_samples_on_every_opset(opset: int) -> None:
    model = parse(CHAIN.format(opset=opset))
    probes = observe_tensors(model, ["w", "x"])
    verify(model)
    assert [p.tensor for p in probes] == ["w", "x"]
    run = session(model)
    names = {i.name for i in run.get_inputs()}
    x = np.arange(-6, 12, dtype=np.float32).reshape(3, 6)
    feed = {"x": x}
    if STARTS in names:
        feed[STARTS] = np.array([1, 0])
        feed[STRIDES] = np.array([5, 7])
    found = dict(zip([o.name for o in run.get_outputs()], run.run(None, feed), strict=True))
    for probe, value, start, step in ((probes[0], -np.maximum(x, 0), 1, 5), (probes[1], x, 0, 7)):
        assert found[probe.low] == value.min()
        assert found[probe.high] == value.max()
        assert found[probe.total] == pytest.approx(value.sum())
        assert found[probe.size] == value.size
        whole = value.reshape(-1)
        assert (
            found[probe.sample].tolist() == (whole if opset < 10 else whole[start::step]).tolist()
        )


def test_only_what_is_observed_is_computed() -> None:
    model = parse(CHAIN.format(opset=17))
    observe_tensors(model, ["y"], sample=False)
    kinds = [node.op_type for node in model.graph]
    assert kinds == ["Relu", "ReduceSum", "ReduceMax", "ReduceMin"]
    assert len(model.graph.outputs) == 3
    assert len(model.graph.inputs) == 1


def test_the_deepest_tensor_comes_first_so_that_none_is_kept_to_the_end() -> None:
    model = parse(CHAIN.format(opset=17))
    observe_tensors(model, ["x", "y", "w"], sample=False)
    read = [n.inputs[0].name for n in model.graph if n.op_type == "ReduceMin"]
    assert read == ["w", "y", "x"]


def test_names_of_the_model_are_kept_apart() -> None:
    model = parse(
        """<ir_version: 8, opset_import: ["" : 17]>
        g (float[3] x) => (float[3] qcompile_probe_low_0) {
            qcompile_probe_low_0 = Relu(x)
        }"""
    )
    probes = observe_tensors(model, ["x", "qcompile_probe_low_0"], sample=False)
    verify(model)
    assert len({p.low for p in probes} | {"qcompile_probe_low_0"}) == 3
    found = session(model).run([p.low for p in probes], {"x": np.array([-1, 0, 2], np.float32)})
    assert found == [-1, 0]


def test_half_precision_is_reduced_in_float32() -> None:
    model = parse(
        """<ir_version: 8, opset_import: ["" : 17]>
        g (float16[4] x) => (float16[4] y) { y = Add(x, x) }"""
    )
    probe = observe_tensors(model, ["y"], sample=False)[0]
    x = np.array([-1, 0.5, 30000, 2], np.float16)
    (total,) = session(model).run([probe.total], {"x": x})
    assert total == pytest.approx(60003)
    assert total.dtype == np.float32


MIXED = """<ir_version: 8, opset_import: ["" : 17]>
g (float[3] x, bool c, int64[3] i) => (float[3] z)
<float[3] w = {1, 2, 3}>
{
    k = Constant<value_floats = [1.0, 2.0, 3.0]>()
    j = Add(i, i)
    y = If(c) <
        then_branch = a () => (float[3] t) { t = Add(x, w) },
        else_branch = b () => (float[3] e) { e = Mul(x, k) }
    >
    s = SequenceConstruct(y, y)
    z = SequenceAt(s, one)
    one = Constant<value_int = 1>()
}"""


def test_floats_of_the_main_graph_are_observable_and_nothing_else() -> None:
    model = parse(
        MIXED.replace(
            "z = SequenceAt(s, one)\n    one = Constant<value_int = 1>()",
            "one = Constant<value_int = 1>()\n    z = SequenceAt(s, one)",
        )
    )
    assert list(observable(model)) == ["x", "y", "z"]
    probes = observe_tensors(model, ["x", "y", "z"], sample=False)
    verify(model)
    feed = {"x": np.ones(3, np.float32), "c": np.array(True), "i": np.zeros(3, np.int64)}
    assert session(model).run([p.high for p in probes], feed) == [1, 4, 4]


@pytest.mark.parametrize("name", ["w", "k", "j", "s", "t", "missing"])
def test_what_is_no_float_of_the_main_graph_is_refused(name: str) -> None:
    model = parse(
        MIXED.replace(
            "z = SequenceAt(s, one)\n    one = Constant<value_int = 1>()",
            "one = Constant<value_int = 1>()\n    z = SequenceAt(s, one)",
        )
    )
    with pytest.raises(CalibrationError, match=f"'{name}' cannot be observed"):
        observe_tensors(model, ["x", name])
