"""Cutting weights out of a serialized model and splicing them in again."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import numpy_helper, parser

from qcompile.ir import wire
from qcompile.ir.wire import CUT_LOCATION, WireError, cut_tensors, rewrite

TEXT = """<ir_version: 8, opset_import: ["" : 17, "own" : 1]>
g (float[N,3] x, bool c) => (float[N,3] y) {
    a = own.f(x)
    y = If (c) <then_branch = t () => (float[N,3] u) { u = Mul(a, w) },
                else_branch = e () => (float[N,3] u) { u = Neg(a) }>
}
<domain: "own", opset_import: ["" : 17]>
f (p) => (q) { q = Relu(p) }
"""


def model(sizes: list[int]) -> onnx.ModelProto:
    """Weights of these sizes as initializers, in a Constant, in a subgraph, in a function."""
    proto = parser.parse_model(TEXT)
    branch = proto.graph.node[1].attribute[0].g
    nodes = [proto.graph.node, branch.node, proto.functions[0].node]
    for i, size in enumerate(sizes):
        tensor = numpy_helper.from_array(np.full(size, i, np.uint8), f"w{i}")
        if i % 3 == 0:
            (proto.graph if i % 2 else branch).initializer.append(tensor)
        else:
            nodes[i % 3].add(op_type="Constant", output=[f"w{i}"]).attribute.append(
                onnx.helper.make_attribute("value", tensor)
            )
    return proto


@given(st.lists(st.integers(0, 400), max_size=12), st.integers(1, 300))
def test_what_is_cut_out_lies_where_it_is_said(sizes: list[int], at_least: int) -> None:
    data = model(sizes).SerializeToString()
    cut = onnx.ModelProto.FromString(cut_tensors(memoryview(data), at_least))
    found = [
        (t, e) for t in _tensors(cut) for e in [{e.key: e.value for e in t.external_data}] if e
    ]
    assert len(found) == sum(s >= at_least for s in sizes)
    for tensor, place in found:
        assert place["location"] == CUT_LOCATION and not tensor.raw_data
        start = int(place["offset"])
        value = int(tensor.name[1:])
        assert data[start : start + int(place["length"])] == bytes([value]) * tensor.dims[0]


def _tensors(proto: onnx.ModelProto) -> list[onnx.TensorProto]:
    branch = proto.graph.node[1].attribute[0].g
    found = [*proto.graph.initializer, *branch.initializer]
    for node in [*proto.graph.node, *branch.node, *proto.functions[0].node]:
        found += [a.t for a in node.attribute if a.type == onnx.AttributeProto.TENSOR]
    return found


def test_nothing_to_cut_gives_the_same_bytes() -> None:
    data = model([3, 5]).SerializeToString()
    assert cut_tensors(memoryview(data), 100) == data
    assert b"".join(rewrite(memoryview(data), lambda *_: None)) == data


@given(st.binary(max_size=200))
def test_any_bytes_are_cut_or_refused(data: bytes) -> None:
    with contextlib.suppress(WireError):
        assert len(cut_tensors(memoryview(data), 10)) <= len(data) + 400


def test_endless_nesting_is_refused() -> None:
    inner = b""
    for _ in range(200):
        # attribute.g, node.attribute, graph.node
        for tag in (0x32, 0x2A, 0x0A):
            size = len(inner)
            length = bytes([size & 0x7F | 0x80, size >> 7 & 0x7F | 0x80, size >> 14])
            inner = bytes([tag]) + length + inner
    size = len(inner)
    length = bytes([size & 0x7F | 0x80, size >> 7 & 0x7F | 0x80, size >> 14])
    with pytest.raises(WireError, match="too deeply"):
        cut_tensors(memoryview(b"\x3a" + length + inner), 10)


def test_the_numbers_of_a_forest_are_not_read_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    read = []

    def counted(buffer: memoryview, start: int, end: int) -> Iterator[wire.Field]:
        for one in fields(buffer, start, end):
            read.append(one)
            yield one

    fields = wire.fields
    monkeypatch.setattr(wire, "fields", counted)
    proto = model([500])
    forest = proto.graph.node.add(op_type="TreeEnsembleClassifier", domain="ai.onnx.ml")
    forest.attribute.append(onnx.helper.make_attribute("nodes_values", [0.5] * 5000))
    forest.attribute.append(onnx.helper.make_attribute("nodes_modes", ["LEAF"] * 5000))
    tensor = numpy_helper.from_array(np.full(500, 7, np.uint8), "base_values")
    forest.attribute.append(onnx.helper.make_attribute("base_values_as_tensor", tensor))
    cut = onnx.ModelProto.FromString(cut_tensors(memoryview(proto.SerializeToString()), 300))
    assert cut.graph.node[-1].attribute[:2] == forest.attribute[:2]
    assert cut.graph.node[-1].attribute[2].t.external_data
    assert len(read) < 200
