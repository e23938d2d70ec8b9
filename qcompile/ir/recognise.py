"""Tells what a file is that is no model, and what a model lacks, in one line each."""

from __future__ import annotations

from collections import Counter

import onnx

from qcompile.ir.errors import ModelError

__all__ = ["check_proto", "recognise"]

_OLDEST_OPSET, _OLDEST_IR = 7, 3

_MAGIC: tuple[tuple[int, bytes, str], ...] = (
    (4, b"ORTM", "an .ort file (ONNX Runtime's own format); pass the .onnx file it was made from"),
    (0, b"PK\x03\x04", "a zip archive (a PyTorch checkpoint?); export it with torch.onnx.export"),
    (0, b"\x80\x02", "a Python pickle (a PyTorch checkpoint?); export it with torch.onnx.export"),
    (0, b"version https://git-lfs", "a git LFS pointer, not the model itself; run `git lfs pull`"),
    (0, b"\x1f\x8b", "a gzip archive; unpack it first"),
    (0, b"\x89HDF", "an HDF5 file (Keras?); convert it with tf2onnx"),
    (4, b"TFL3", "a TensorFlow Lite file; convert it with tf2onnx"),
    (0, b"GGUF", "a GGUF file; export the model to ONNX"),
    (0, b"<?xml", "an XML file (OpenVINO?); pass the .onnx file it was made from"),
)


def recognise(data: memoryview, name: str) -> None:
    """Check that the bytes are not one of the other formats that people pass.

    Raises:
        ModelError: says what it is and what to do.
    """
    if not data:
        raise ModelError(f"{name} is empty")
    head = bytes(data[:512])
    for offset, magic, text in _MAGIC:
        if head[offset : offset + len(magic)] == magic:
            raise ModelError(f"{name} is {text}")
    # a ModelProto starts with a field tag; all common first fields are control characters
    if all(c in b"\t\n\r" or 32 <= c < 127 for c in head[:64]):
        raise ModelError(f"{name} is a text file, not a binary ONNX model")


def check_proto(proto: onnx.ModelProto, name: str) -> None:
    """Check what the graph's own structure does not show, and write "ai.onnx" as "".

    Raises:
        ModelError: a part is missing, too old, or named twice.
    """
    if not proto.HasField("graph") or not proto.ir_version:
        raise ModelError(f"{name} is not an ONNX model: it holds no graph")
    if proto.ir_version < _OLDEST_IR:
        raise ModelError(
            f"{name} is of IR version {proto.ir_version}; {_OLDEST_IR} is the oldest that can be "
            "compiled: export it anew"
        )
    if not proto.graph.output:
        raise ModelError(f"{name} has no outputs")
    if not proto.opset_import:
        raise ModelError(f"{name} is not a valid ONNX model: it names no operator set")
    for owner in (proto, *proto.functions):
        for entry in owner.opset_import:
            if entry.domain == "ai.onnx":
                entry.domain = ""
    opset = next((e.version for e in proto.opset_import if e.domain == ""), None)
    if opset is not None and opset < _OLDEST_OPSET:
        raise ModelError(
            f"{name} is of opset {opset}; {_OLDEST_OPSET} is the oldest that can be compiled: "
            "convert it with onnx.version_converter, or export it anew"
        )
    if opset is None and any(n.domain in ("", "ai.onnx") for n in proto.graph.node):
        raise ModelError(f"{name} is not a valid ONNX model: it does not name the ONNX opset")
    for kind, entries in (
        ("graph inputs", [i.name for i in proto.graph.input]),
        ("initializers", [t.name for t in proto.graph.initializer]),
    ):
        twice = next((n for n, count in Counter(entries).items() if count > 1 or not n), None)
        if twice is not None:
            what = f"two {kind} have the name '{twice}'" if twice else f"{kind} without a name"
            raise ModelError(f"{name} is not a valid ONNX model: {what}")
    for value in (*proto.graph.input, *proto.graph.output, *proto.graph.value_info):
        if _holds_map(value.type):
            raise ModelError(
                f"{name}: '{value.name}' is a map, not a tensor (a classical model with ZipMap?); "
                "export it without (options={'zipmap': False})"
            )
    _check_graph(proto.graph, name)


def _holds_map(kind: onnx.TypeProto) -> bool:
    if kind.HasField("sequence_type"):
        return _holds_map(kind.sequence_type.elem_type)
    return bool(kind.HasField("map_type"))


def _check_graph(graph: onnx.GraphProto, name: str) -> None:
    writers: dict[str, str] = {t.name: "an initializer" for t in graph.initializer}
    writers.update({i.name: "a graph input" for i in graph.input})
    for index, node in enumerate(graph.node):
        what = f"node '{node.name}' ({node.op_type})" if node.name else f"a {node.op_type}"
        if not node.op_type:
            raise ModelError(f"{name} is not a valid ONNX model: node {index} has no operator")
        for output in node.output:
            if output and output in writers:
                raise ModelError(
                    f"{name} is not a valid ONNX model: tensor '{output}' is written by {what}, "
                    f"and is {writers[output]} already"
                )
            writers[output] = f"the output of {what}"
        for attr in node.attribute:
            for inner in (*((attr.g,) if attr.HasField("g") else ()), *attr.graphs):
                _check_graph(inner, name)
