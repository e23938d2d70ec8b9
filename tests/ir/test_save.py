"""Writing: nothing lost, nothing half-written, the same bytes for the same model."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as oir
import pytest
from onnx import TensorProto, helper, numpy_helper, parser

from qcompile.ir.errors import ModelError, OutputError
from qcompile.ir.graph import constant
from qcompile.ir.load import load_model
from qcompile.ir.save import model_bytes, model_chunks, save_model


def parse(text: str, ir: int = 10, opset: int = 21) -> onnx.ModelProto:
    return parser.parse_model(f'<ir_version: {ir}, opset_import: ["" : {opset}]>\n{text}')


def again(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The model after loading and saving."""
    saved = onnx.load_from_string(model_bytes(load_model(proto).model))
    onnx.checker.check_model(saved)
    return saved


def big_model() -> onnx.ModelProto:
    proto = parse("g (float[N,64] x) => (float[N,64] y) { a = MatMul(x, w) y = MatMul(a, v) }")
    rng = np.random.default_rng(0)
    for name in ("w", "v"):
        array = rng.normal(size=(64, 64)).astype(np.float32)
        proto.graph.initializer.append(numpy_helper.from_array(array, name))
    return proto


def test_metadata_survives() -> None:
    proto = parse("g (float[N,3] x) => (float[N,3] y) { [act] a = Relu(x) y = Neg(a) }")
    helper.set_model_props(proto, {"author": "me", "classes": "3"})
    proto.graph.metadata_props.add(key="graph", value="g1")
    proto.graph.node[0].metadata_props.add(key="node", value="n1")
    proto.graph.value_info.append(helper.make_tensor_value_info("a", TensorProto.FLOAT, ["N", 3]))
    proto.graph.value_info[0].metadata_props.add(key="value", value="v1")
    for place in (proto, proto.graph, proto.graph.node[0], proto.graph.input[0]):
        place.doc_string = "said"
    proto.producer_name, proto.producer_version, proto.domain = "tool", "1.2", "org.example"
    proto.model_version = 7
    saved = again(proto)
    assert {p.key: p.value for p in saved.metadata_props} == {"author": "me", "classes": "3"}
    assert {p.key: p.value for p in saved.graph.metadata_props} == {"graph": "g1"}
    assert {p.key: p.value for p in saved.graph.node[0].metadata_props}["node"] == "n1"
    a = next(v for v in saved.graph.value_info if v.name == "a")
    assert {p.key: p.value for p in a.metadata_props} == {"value": "v1"}
    for place in (saved, saved.graph, saved.graph.node[0], saved.graph.input[0]):
        assert place.doc_string == "said"
    assert (saved.producer_name, saved.producer_version) == ("tool", "1.2")
    assert (saved.domain, saved.model_version) == ("org.example", 7)


def test_quantization_annotations_survive() -> None:
    text = "g (float[3] x) => (float[3] y) <float[3] w = {1,2,3}> { a = Mul(x, w) y = Neg(a) }"
    proto = parse(text)
    for name in ("x", "w", "a", "y"):
        note = proto.graph.quantization_annotation.add(tensor_name=name)
        note.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value=f"{name}_scale")
    found = {
        q.tensor_name: [(p.key, p.value) for p in q.quant_parameter_tensor_names]
        for q in again(proto).graph.quantization_annotation
    }
    assert found == {n: [("SCALE_TENSOR", f"{n}_scale")] for n in ("x", "w", "a", "y")}


def test_what_the_graph_declares_survives() -> None:
    text = "g (float[batch,3,H,W] x, int64[?] i) => (float[batch,?,H,W] y) { y = Gather<axis=1>(x, i) }"
    proto = parse(text)
    saved = again(proto)
    assert saved.graph.input == proto.graph.input
    assert saved.graph.output == proto.graph.output
    assert (saved.ir_version, saved.opset_import) == (proto.ir_version, proto.opset_import)


def test_overridable_initializers_stay_overridable() -> None:
    proto = parse("g (float[3] x, float[3] w) => (float[3] y) { y = Mul(x, w) }")
    proto.graph.initializer.append(numpy_helper.from_array(np.ones(3, np.float32), "w"))
    saved = again(proto)
    assert [i.name for i in saved.graph.input] == ["x", "w"]
    assert [t.name for t in saved.graph.initializer] == ["w"]


@pytest.mark.parametrize(
    ("kind", "values", "ir"),
    [
        ("INT4", [-8, 7, 3], 10),
        ("UINT4", [0, 15, 3], 10),
        ("INT2", [-2, 1, 0, 1, -1], 13),
        ("UINT2", [3, 0, 1, 2, 3], 13),
    ],
)
def test_small_integers_survive_and_raise_the_ir_version(
    kind: str, values: list[int], ir: int, tmp_path: Path
) -> None:
    if not hasattr(TensorProto, kind):
        pytest.skip("not in the installed onnx")
    opset = 25 if kind.endswith("2") else 21
    proto = parse(f"g () => ({kind.lower()}[{len(values)}] y) {{ y = Identity(w) }}", 8, opset)
    dtype = getattr(TensorProto, kind)
    proto.graph.initializer.append(helper.make_tensor("w", dtype, [len(values)], values))
    model = load_model(proto).model
    save_model(model, tmp_path / "m.onnx")
    saved = onnx.load(tmp_path / "m.onnx")
    assert saved.ir_version == ir
    array = numpy_helper.to_array(saved.graph.initializer[0])
    np.testing.assert_array_equal(array.astype(int), values)


def test_many_small_integers_are_spliced() -> None:
    proto = parse("g () => (int4[100000] y) { y = Identity(w) }")
    values = np.random.default_rng(0).integers(-8, 8, 100_000)
    packed = ((values[0::2] & 15) | (values[1::2] & 15) << 4).astype(np.uint8).tobytes()
    proto.graph.initializer.add(
        name="w", data_type=TensorProto.INT4, dims=[100_000], raw_data=packed
    )
    weight = constant(load_model(proto).model.graph.initializers["w"])
    assert weight is not None
    np.testing.assert_array_equal(weight.astype(int), values)
    assert again(proto).graph.initializer[0].raw_data == packed


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16, np.float64, np.bool_, np.int8])
def test_other_types_survive(dtype: type) -> None:
    data = np.arange(-3000, 3000).astype(dtype).tobytes()
    kind = oir.DataType.from_numpy(np.dtype(dtype))
    proto = parse(f"g () => ({kind.name.lower()}[6000] y) {{ y = Identity(w) }}")
    proto.graph.initializer.add(name="w", data_type=int(kind), dims=[6000], raw_data=data)
    assert again(proto).graph.initializer[0].raw_data == data


def test_strings_and_empty_tensors_survive() -> None:
    proto = parse("g () => (string[2] y, float[0] z) { y = Identity(s) z = Identity(e) }")
    proto.graph.initializer.append(helper.make_tensor("s", TensorProto.STRING, [2], [b"a", b"bc"]))
    proto.graph.initializer.append(helper.make_tensor("e", TensorProto.FLOAT, [0], []))
    saved = {t.name: numpy_helper.to_array(t) for t in again(proto).graph.initializer}
    assert saved["s"].tolist() == ["a", "bc"]
    assert saved["e"].shape == (0,)


def test_arrays_in_another_memory_order_are_written_right() -> None:
    model = load_model(big_model()).model
    array = np.asfortranarray(np.random.default_rng(1).normal(size=(64, 64)).astype(np.float32))
    model.graph.initializers["w"].const_value = oir.tensor(array)
    saved = onnx.load_from_string(model_bytes(model))
    np.testing.assert_array_equal(numpy_helper.to_array(saved.graph.initializer[0]), array)


def test_saving_leaves_the_model_as_it_was(tmp_path: Path) -> None:
    model = load_model(big_model()).model
    tensors = [v.const_value for v in model.graph.initializers.values()]
    save_model(model, tmp_path / "m.onnx", external_above=10)
    assert [v.const_value for v in model.graph.initializers.values()] == tensors


def test_the_same_model_gives_the_same_bytes_in_any_folder(tmp_path: Path) -> None:
    files = []
    for name in ("one", "two"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "in.onnx").write_bytes(big_model().SerializeToString())
        model = load_model(folder / "in.onnx").model
        save_model(model, folder / "inside.onnx")
        save_model(model, folder / "aside.onnx", external_above=1000)
        files.append({p.name: p.read_bytes() for p in folder.iterdir()})
        assert str(tmp_path).encode() not in b"".join(files[-1].values())
    assert files[0] == files[1]
    assert set(files[0]) == {"in.onnx", "inside.onnx", "aside.onnx", "aside.onnx.data"}


def test_what_is_written_is_what_protobuf_would_write() -> None:
    model = load_model(big_model()).model
    assert onnx.load_from_string(model_bytes(model)) == oir.to_proto(model)
    assert (
        sum(isinstance(c, memoryview) and len(c) == 64 * 64 * 4 for c in model_chunks(model)) == 2
    )


def test_the_side_file_is_read_by_onnx_and_the_weights_start_where_told(tmp_path: Path) -> None:
    save_model(load_model(big_model()).model, tmp_path / "m.onnx", external_above=1000)
    bare = onnx.load(tmp_path / "m.onnx", load_external_data=False)
    assert {e.key: e.value for e in bare.graph.initializer[1].external_data} == {
        "location": "m.onnx.data",
        "offset": str(64 * 64 * 4),
        "length": str(64 * 64 * 4),
    }
    for a, b in zip(
        onnx.load(tmp_path / "m.onnx").graph.initializer, big_model().graph.initializer, strict=True
    ):
        np.testing.assert_array_equal(numpy_helper.to_array(a), numpy_helper.to_array(b))


def test_a_weight_of_a_constant_node_stays_inside(tmp_path: Path) -> None:
    proto = big_model()
    weight = proto.graph.initializer.pop()
    proto.graph.node.insert(0, helper.make_node("Constant", [], ["v"], value=weight))
    save_model(load_model(proto).model, tmp_path / "m.onnx", external_above=1000)
    onnx.checker.check_model(tmp_path / "m.onnx")
    bare = onnx.load(tmp_path / "m.onnx", load_external_data=False)
    assert len(bare.graph.node[0].attribute[0].t.raw_data) == 64 * 64 * 4


def test_a_model_above_protobufs_limit_is_no_bytes() -> None:
    model = load_model(big_model()).model
    zeros = np.zeros(2**30, np.int8)  # untouched pages cost nothing
    for name in ("a", "b"):
        value = oir.Value(name=name, const_value=oir.tensor(zeros, name=name))
        model.graph.register_initializer(value)
    with pytest.raises(ModelError, match="above protobuf's limit of 2 GB"):
        model_bytes(model)


@contextmanager
def full_disk() -> Iterator[None]:
    """Files may grow to 10,000 bytes. Only inside: pytest's own output may be a file too."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("limit", [1000, 10**9])
def test_a_full_disk_leaves_what_was_there(tmp_path: Path, limit: int) -> None:
    (tmp_path / "m.onnx").write_bytes(b"old")
    refused = pytest.raises(OutputError, match=r"m\.onnx cannot be written: File too large")
    with full_disk(), refused:
        save_model(load_model(big_model()).model, tmp_path / "m.onnx", external_above=limit)
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("m.onnx", b"old")]


def test_a_missing_folder_is_an_output_error(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"none.m\.onnx cannot be written: No such file"):
        save_model(load_model(big_model()).model, tmp_path / "none" / "m.onnx")


def test_a_folder_in_the_way_is_an_output_error(tmp_path: Path) -> None:
    (tmp_path / "m.onnx" / "x").mkdir(parents=True)
    with pytest.raises(OutputError, match="cannot be written"):
        save_model(load_model(big_model()).model, tmp_path / "m.onnx")
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]


@pytest.mark.skipif(sys.platform == "win32", reason="a mapped file cannot be replaced there")
def test_a_model_can_be_saved_over_its_own_file(tmp_path: Path) -> None:
    proto = big_model()
    array = np.random.default_rng(2).normal(size=(64, 640)).astype(np.float32)
    proto.graph.initializer[1].CopyFrom(numpy_helper.from_array(array, "v"))
    proto.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 640
    path = tmp_path / "m.onnx"
    onnx.save(proto, path, save_as_external_data=True, location="m.onnx.data", size_threshold=9)
    for _ in range(2):
        save_model(load_model(path).model, path, external_above=1000)
    np.testing.assert_array_equal(
        numpy_helper.to_array(onnx.load(path).graph.initializer[1]), array
    )
