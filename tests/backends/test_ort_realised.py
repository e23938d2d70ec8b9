"""Tags, owners and realised precision, on graphs that ONNX Runtime really fuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from qcompile.backends.ort_owners import base, find_owners
from qcompile.backends.ort_profile import profile_model
from qcompile.backends.ort_realised import realised
from qcompile.backends.ort_tags import tag_model, tags
from qcompile.ir.errors import ModelError
from qcompile.ir.graph import ORIGIN_KEY
from qcompile.ir.plan import FLOAT, INT8, INT8_DYNAMIC

HEAD = '<ir_version: 8, opset_import: ["" : 17, "com.microsoft" : 1]> '
IMAGE = {"x": np.random.default_rng(0).normal(size=(1, 4, 8, 8)).astype(np.float32)}


def save(path: Path, text: str, **weights: Any) -> Path:
    model = onnx.parser.parse_model(HEAD + text)
    for name, array in weights.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(array), name))
    onnx.save(model, path)
    return path


def filters(*shape: int) -> np.ndarray:
    return np.random.default_rng(1).normal(size=shape).astype(np.float32) / 10


FLOAT_CONV = """
m (float[n, 4, 8, 8] x) => (float[n, 8, 8, 8] y) {
    [stem] a = Conv<pads = [1, 1, 1, 1]>(x, w)
    [act] b = Relu(a)
    [side] c = Conv<pads = [1, 1, 1, 1]>(x, w2)
    [sum] y = Add(b, c)
}"""

QDQ_CONV = """
m (float[n, 4, 8, 8] x) => (float[n, 8, 8, 8] y) {
    qx = QuantizeLinear(x, s, z)
    dx = DequantizeLinear(qx, s, z)
    dw = DequantizeLinear(wq, s, zw)
    [stem] a = Conv<pads = [1, 1, 1, 1]>(dx, dw)
    [act] b = Relu(a)
    qb = QuantizeLinear(b, s, z0)
    db = DequantizeLinear(qb, s, z0)
    [tail] y = Softmax(db)
}"""

INTEGERS = {
    "s": np.float32(0.05),
    "z": np.uint8(128),
    "z0": np.uint8(0),
    "zw": np.int8(0),
    "wq": np.random.default_rng(2).integers(-127, 127, (8, 4, 3, 3)).astype(np.int8),
}


@pytest.fixture
def float_conv(tmp_path: Path) -> Path:
    return save(tmp_path / "f.onnx", FLOAT_CONV, w=filters(8, 4, 3, 3), w2=filters(8, 4, 3, 3))


@pytest.fixture
def qdq_conv(tmp_path: Path) -> Path:
    return save(tmp_path / "q.onnx", QDQ_CONV, **INTEGERS)


def test_float_layers_are_float(float_conv: Path) -> None:
    found = realised(float_conv, IMAGE)
    assert set(found.layers) == {"stem", "act", "side", "sum"}
    assert {layer.precision for layer in found.layers.values()} == {FLOAT}
    assert found.unmapped == () and found.vanished == ()
    assert found.mac_share == 0.0
    assert all("Conv" in op for op in found.layers["act"].op_types)


def test_qdq_conv_becomes_an_integer_kernel(qdq_conv: Path) -> None:
    found = realised(qdq_conv, IMAGE)
    assert found.layers["stem"].precision == INT8
    assert found.layers["stem"].op_types == ("QLinearConv",)
    assert found.layers["act"].precision == INT8
    assert found.layers["tail"].precision == FLOAT
    assert found.mac_share == 1.0
    assert {k.op_type for k in found.kernels if k.precision == "conversion"} == {
        "QuantizeLinear",
        "DequantizeLinear",
    }


def test_share_weighs_by_macs(qdq_conv: Path) -> None:
    found = realised(qdq_conv, IMAGE)
    assert found.share({"stem": 30, "tail": 10, "gone": 0}) == 0.75
    assert found.share({}) is None


def test_asked_but_not_realised(tmp_path: Path) -> None:
    # only the activation has Q/DQ: no integer kernel can be formed
    text = QDQ_CONV.replace("dw = DequantizeLinear(wq, s, zw)", "dw = Neg(other)")
    text = text.replace("(float", "(float[8, 4, 3, 3] other, float", 1)
    path = save(tmp_path / "half.onnx", text, **INTEGERS)
    found = realised(path, {**IMAGE, "other": filters(8, 4, 3, 3)})
    assert found.layers["stem"].precision == FLOAT
    assert found.mac_share == 0.0


def test_dynamic_matmul(tmp_path: Path) -> None:
    text = """
    m (float[n, 16] x) => (float[n, 8] y) {
        q, s, z = DynamicQuantizeLinear(x)
        i = MatMulInteger(q, w, z)
        f = Cast<to = 1>(i)
        k = Mul(s, ws)
        [head] y = Mul(f, k)
    }"""
    weight = np.random.default_rng(3).integers(-127, 127, (16, 8)).astype(np.int8)
    path = save(tmp_path / "d.onnx", text, w=weight, ws=np.float32(0.01))
    found = realised(path, {"x": np.ones((2, 16), np.float32)})
    assert found.layers["head"].precision == INT8_DYNAMIC
    assert found.mac_share == 1.0


def test_static_matmul_with_float_output_is_static(tmp_path: Path) -> None:
    text = """
    m (float[n, 16] x) => (float[n, 8] y) {
        q = QuantizeLinear(x, s, z)
        [head] y = com.microsoft.MatMulIntegerToFloat(q, w, s, s, z)
    }"""
    weight = np.random.default_rng(3).integers(-127, 127, (16, 8)).astype(np.int8)
    path = save(tmp_path / "s.onnx", text, w=weight, s=np.float32(0.01), z=np.uint8(128))
    found = realised(path, {"x": np.ones((2, 16), np.float32)})
    assert found.layers["head"].precision == INT8


def test_moved_integers_count_as_integer(tmp_path: Path) -> None:
    text = """
    m (float[1, 4, 8, 8] x) => (float[1, 4, 4, 4] y) {
        q = QuantizeLinear(x, s, z)
        [pool] p = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(q)
        y = DequantizeLinear(p, s, z)
    }"""
    path = save(tmp_path / "p.onnx", text, s=np.float32(0.05), z=np.uint8(128))
    assert realised(path, IMAGE).layers["pool"].precision == INT8


def test_origin_ids_come_from_metadata(float_conv: Path) -> None:
    model = onnx.load(float_conv)
    for node in model.graph.node:
        node.metadata_props.add(key=ORIGIN_KEY, value=f"/net/{node.name}\n/net/more")
        node.name = "same"  # names may say nothing
    onnx.save(model, float_conv)
    assert set(realised(float_conv, IMAGE).layers) == {
        *(f"/net/{n}" for n in ("stem", "act", "side", "sum")),
        "/net/more",
    }


def test_fusion_absorbs_what_comes_before(tmp_path: Path) -> None:
    text = """
    m (float[n, 16] x) => (float[n, 16] y) {
        [lin] a = MatMul(x, w)
        [div] b = Div(a, root2)
        [erf] c = Erf(b)
        [one] d = Add(c, ones)
        [mul] e = Mul(a, d)
        [half] f = Mul(e, halves)
        [out] y = MatMul(f, w)
    }"""
    path = save(
        tmp_path / "g.onnx",
        text,
        w=filters(16, 16),
        root2=np.float32(2**0.5),
        ones=np.float32(1),
        halves=np.float32(0.5),
    )
    found = realised(path, {"x": np.ones((2, 16), np.float32)})
    for name in ("div", "erf", "one", "mul", "half"):
        assert found.layers[name].op_types == ("Gelu",), name
    assert "Gelu" not in found.layers["lin"].op_types


def test_constants_are_folded_and_not_missed(tmp_path: Path) -> None:
    text = """
    m (float[n, 4] x) => (float[n, 4] y) {
        [twice] c = Mul(k, k)
        [add] y = Add(x, c)
    }"""
    found = realised(
        save(tmp_path / "c.onnx", text, k=np.ones(4, np.float32)),
        {"x": np.ones((1, 4), np.float32)},
    )
    assert set(found.layers) == {"add"}
    assert found.vanished == ()


def test_nodes_of_branches(tmp_path: Path) -> None:
    text = """
    m (float[4] x, bool c) => (float[4] y) {
        [scale] k = Abs(x)
        [branch] y = If(c) <
            then_branch = t () => (float[4] r) { [double] r = Add(k, k) },
            else_branch = e () => (float[4] q) { [square] q = Mul(k, k) }
        >
    }"""
    path = save(tmp_path / "if.onnx", text)
    x = np.arange(4, dtype=np.float32)
    both = realised(path, [{"x": x, "c": np.array(True)}, {"x": x, "c": np.array(False)}])
    assert {"scale", "branch", "double", "square"} <= set(both.layers)


def test_refusal_names_the_node_of_the_file(tmp_path: Path) -> None:
    text = "m (float[n] x) => (float[n] y) { [the_node] y = Relu<alpha = 1.0>(x) }"
    with pytest.raises(ModelError, match="the_node"):
        realised(save(tmp_path / "bad.onnx", text), {"x": np.ones(1, np.float32)})


def test_no_onnx(tmp_path: Path) -> None:
    (tmp_path / "no.onnx").write_text("hello")
    with pytest.raises(ModelError, match="cannot be read as ONNX"):
        realised(tmp_path / "no.onnx", IMAGE)


def test_external_data_are_found(float_conv: Path, tmp_path: Path) -> None:
    folder = tmp_path / "other"
    folder.mkdir()
    onnx.save(
        onnx.load(float_conv),
        folder / "m.onnx",
        save_as_external_data=True,
        location="m.data",
        size_threshold=0,
    )
    assert "stem" in realised(folder / "m.onnx", IMAGE).layers


def test_tagging_keeps_the_numbers(float_conv: Path) -> None:
    from qcompile.backends.ort import open_session

    tagged = open_session(tag_model(float_conv).model, threads=1).run(IMAGE)
    np.testing.assert_array_equal(tagged["y"], open_session(float_conv, threads=1).run(IMAGE)["y"])


def test_subgraph_names_that_hide_outer_ones(tmp_path: Path) -> None:
    from qcompile.backends.ort import open_session

    text = """
    m (float[2] x) => (float[2] y) {
        k = Add(x, x)
        trip = Constant<value = int64 {3}>()
        go = Constant<value = bool {1}>()
        y = Loop(trip, go, k) <body = b (int64 i, bool c, float[2] v) => (bool d, float[2] w) {
            d = Identity(c)
            k2 = Mul(v, v)
            w = Add(k2, k)
        }>
    }"""
    path = save(tmp_path / "loop.onnx", text)
    feed = {"x": np.array([0.1, 0.2], np.float32)}
    np.testing.assert_array_equal(
        open_session(tag_model(path).model).run(feed)["y"], open_session(path).run(feed)["y"]
    )


def test_every_kernel_is_accounted_for(fmnist_model: Path) -> None:
    tagged = tag_model(fmnist_model)
    feed = {"image": np.zeros((1, 1, 28, 28), np.float32)}
    owners = find_owners(tagged, profile_model(tagged, [feed]))
    assert owners.unmapped == () and owners.unowned == ()
    assert sum(map(len, owners.sources)) == len(owners.owner)


@pytest.mark.parametrize(
    ("op_type", "wanted"),
    [
        ("QLinearConv", "Conv"),
        ("NhwcFusedConv", "Conv"),
        ("QuantizeLinear", "QuantizeLinear"),
        ("DynamicQuantizeLSTM", "LSTM"),
        ("QGemm", "Gemm"),
        ("MatMulNBits", "MatMul"),
        ("ConvInteger", "Conv"),
    ],
)
def test_base_operators(op_type: str, wanted: str) -> None:
    assert base(op_type) == wanted


def test_tags_stand_out() -> None:
    assert tags("fused zqc3n_zqc12t0z_nchwc/zqc") == (3, 12)
    assert tags("conv_1_zq2") == ()


def test_bodies_of_functions_belong_to_their_node(tmp_path: Path) -> None:
    # ONNX Runtime writes HardSwish out as HardSigmoid and Mul, which bear no names
    text = """
    m (float[n, 4, 8, 8] x) => (float[n, 4, 8, 8] y) {
        [before] a = Abs(x)
        [gate] b = HardSwish(a)
        [after] y = Abs(b)
    }"""
    found = realised(save(tmp_path / "h.onnx", text), IMAGE)
    assert found.unmapped == ()
    assert set(found.layers) == {"before", "gate", "after"}
    assert "Abs" not in found.layers["gate"].op_types
