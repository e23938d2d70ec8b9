"""What is no model, or a broken one: one clear line each."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper, parser

from qcompile.ir.errors import ModelError
from qcompile.ir.load import load_model

GOOD = """<ir_version: 8, opset_import: ["" : 17]>
g (float[N,3] x) => (float[N,3] y) <float[3] w = {1, 2, 3}> { a = Mul(x, w) y = Relu(a) }"""


def good() -> onnx.ModelProto:
    return parser.parse_model(GOOD)


def refused(source: object, words: str) -> str:
    with pytest.raises(ModelError, match=words) as caught:
        load_model(source)  # type: ignore[arg-type]
    message = str(caught.value)
    assert "\n" not in message
    assert caught.value.exit_code == 2
    return message


FILES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "is empty"),
    "ort": (b"\x18\x00\x00\x00ORTM" + bytes(40), "an .ort file"),
    "zip": (b"PK\x03\x04" + bytes(60), "torch.onnx.export"),
    "pickle": (b"\x80\x02}q\x00.", "Python pickle"),
    "text": (b"ir_version: 7\ngraph { }\n" * 5, "a text file"),
    "html": (b"<!DOCTYPE html><html><body>404</body></html>" * 3, "a text file"),
    "xml": (b'<?xml version="1.0"?><net name="m"></net>', "OpenVINO"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "git lfs pull"),
    "gzip": (b"\x1f\x8b\x08\x00" + bytes(40), "gzip"),
    "tflite": (b"\x1c\x00\x00\x00TFL3" + bytes(40), "TensorFlow Lite"),
    "noise": (bytes(np.random.default_rng(0).integers(128, 256, 500, np.uint8)), "not an ONNX"),
    "zeros": (bytes(500), "not an ONNX model"),
    "other_proto": (TensorProto(name="w", dims=[3]).SerializeToString(), "not an ONNX model"),
}


@pytest.mark.parametrize("kind", FILES)
def test_files_that_are_no_model(kind: str, tmp_path: Path) -> None:
    data, words = FILES[kind]
    path = tmp_path / f"{kind}.onnx"
    path.write_bytes(data)
    assert str(path) in refused(path, words)
    refused(data, words)


def test_a_torch_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02")
    refused(path, "PyTorch checkpoint")


def test_a_folder_and_a_missing_file(tmp_path: Path) -> None:
    refused(tmp_path, "is a folder; pass the .onnx file")
    refused(tmp_path / "none.onnx", "no such file")


def test_a_truncated_file_at_every_length(tmp_path: Path) -> None:
    proto = good()
    weight = numpy_helper.from_array(np.ones(40_000, np.float32), "big")
    proto.graph.initializer.append(weight)
    data = proto.SerializeToString()
    for size in [*range(1, 200), len(data) // 2, len(data) - 1]:
        with pytest.raises(ModelError):
            load_model(data[:size])
    refused(data[: len(data) // 2], "truncated")


def edited(edit: Callable[[onnx.ModelProto], object]) -> onnx.ModelProto:
    proto = good()
    edit(proto)
    return proto


BROKEN: dict[str, tuple[Callable[[onnx.ModelProto], object], str]] = {
    "no_graph": (lambda m: m.ClearField("graph"), "holds no graph"),
    "no_outputs": (lambda m: m.graph.ClearField("output"), "has no outputs"),
    "no_opset": (lambda m: m.ClearField("opset_import"), "names no operator set"),
    "only_other_opset": (
        lambda m: setattr(m.opset_import[0], "domain", "own"),
        "does not name the ONNX opset",
    ),
    "old_opset": (lambda m: setattr(m.opset_import[0], "version", 6), "is of opset 6"),
    "old_ir": (lambda m: setattr(m, "ir_version", 2), "is of IR version 2"),
    "unknown_input": (
        lambda m: m.graph.node[0].input.__setitem__(0, "lost"),
        "reads 'lost', which nothing in the model writes",
    ),
    "unwritten_output": (
        lambda m: setattr(m.graph.output[0], "name", "lost"),
        "output 'lost' is written by nothing",
    ),
    "circle": (lambda m: m.graph.node[0].input.__setitem__(0, "y"), "in a circle"),
    "written_twice": (
        lambda m: m.graph.node[1].output.__setitem__(0, "a"),
        "tensor 'a' is written by a Relu, and is the output of a Mul",
    ),
    "two_inputs": (lambda m: m.graph.input.append(m.graph.input[0]), "two graph inputs"),
    "two_weights": (
        lambda m: m.graph.initializer.append(m.graph.initializer[0]),
        "two initializers have the name 'w'",
    ),
    "nameless_weight": (
        lambda m: setattr(m.graph.initializer[0], "name", ""),
        "initializers without a name",
    ),
    "short_weight": (
        lambda m: m.graph.initializer[0].dims.__setitem__(0, 4),
        r"tensor 'w' of shape \[4\] needs 16 bytes, the model gives it 12",
    ),
    "map_output": (
        lambda m: m.graph.output[0].type.map_type.MergeFrom(
            helper.make_map_type_proto(
                TensorProto.INT64, helper.make_tensor_type_proto(TensorProto.FLOAT, [])
            ).map_type
        ),
        "'y' is a map, not a tensor",
    ),
    "sequence_of_maps_output": (
        lambda m: m.graph.output[0].type.CopyFrom(
            helper.make_sequence_type_proto(
                helper.make_map_type_proto(
                    TensorProto.INT64, helper.make_tensor_type_proto(TensorProto.FLOAT, [])
                )
            )
        ),
        r"'y' is a map, not a tensor .*options=\{'zipmap': False\}",
    ),
    "zero_scale": (
        lambda m: m.graph.CopyFrom(
            parser.parse_graph(
                "g (float[4] x) => (uint8[4] y) <float s = {0}> { y = QuantizeLinear(x, s) }"
            )
        ),
        "scale 's' is not positive",
    ),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_broken_models(fault: str) -> None:
    edit, words = BROKEN[fault]
    refused(edited(edit), words)


def test_damaged_bytes_are_refused_or_loaded_never_a_crash() -> None:
    rng = np.random.default_rng(5)
    data = good().SerializeToString()
    for _ in range(500):
        damaged = bytearray(data)
        for _ in range(int(rng.integers(1, 4))):
            damaged[int(rng.integers(len(data)))] = int(rng.integers(256))
        try:
            load_model(bytes(damaged))
        except ModelError as e:
            assert "\n" not in str(e)


def test_a_sparse_weight_that_cannot_be_read() -> None:
    proto = good()
    values = numpy_helper.from_array(np.ones(2, np.float32), "s")
    indices = TensorProto(dims=[2], data_type=TensorProto.INT64, raw_data=b"123")
    proto.graph.sparse_initializer.add(values=values, indices=indices, dims=[3])
    refused(proto, "sparse tensor 's' cannot be read")


def test_a_weight_without_a_type() -> None:
    refused(edited(lambda m: m.graph.initializer[0].ClearField("data_type")), "no element type")
