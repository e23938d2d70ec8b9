"""From a user's file to an onnx_ir model: recognise, parse, map the weights.

Weights stay where they lie: tensors of 64 KiB and more are read-only views of the file (or of the
caller's bytes). A big file is mapped, so it costs the memory of its graph until a weight is touched.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import math
import mmap
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as oir
from google.protobuf.message import DecodeError

from qcompile.ir.errors import ModelError
from qcompile.ir.notes import Note
from qcompile.ir.recognise import check_proto, recognise
from qcompile.ir.sparse import densify
from qcompile.ir.wire import CUT_LOCATION, WireError, cut_tensors

__all__ = ["Source", "map_weights", "open_source", "parse"]

_MAP_FROM = 65536
"""Bytes from which a tensor is a view of the file instead of a copy."""

_READ_BELOW = 128 << 20
"""Bytes below which a file is read at once: one that an exporter writes anew in place while it is
mapped ends the process with SIGBUS, or changes the weights under the compile."""


@dataclass
class Source:
    """Where a model came from.

    Attributes:
        name: how messages call it.
        data: the serialized model.
        path: its file, None for bytes.
        folder: where side files are looked for; None when unknown.
        digest: sha256 of the model; side files are added by ``map_weights``.
    """

    name: str
    data: memoryview
    path: Path | None = None
    folder: Path | None = None
    _files: dict[str, memoryview] = field(default_factory=dict)

    def sha256(self) -> str:
        """Hash over the model's bytes and those of its side files."""
        digest = hashlib.sha256(self.data)
        for location in sorted(self._files):
            side = hashlib.sha256(self._files[location]).hexdigest()
            digest.update(f"\n{location}\n{side}".encode())
        return digest.hexdigest()

    def side_file(self, location: str, tensor: str) -> memoryview:
        """The mapped side file, which must lie in the model's folder.

        Raises:
            ModelError: it is missing, cannot be read, or lies elsewhere.
        """
        if location not in self._files:
            self._files[location] = _map(self._locate(location, tensor))
        return self._files[location]

    def _locate(self, location: str, tensor: str) -> Path:
        what = f"model {self.name}: the data of tensor '{tensor}'"
        posix, windows = PurePosixPath(location), PureWindowsPath(location)
        outside = posix.is_absolute() or windows.drive or windows.root
        if not location or outside or ".." in posix.parts or ".." in windows.parts:
            raise ModelError(
                f"{what} are said to be in '{location}'; only relative paths within the model's "
                "folder are read"
            )
        if self.folder is None:
            raise ModelError(
                f"{what} lie in the side file '{location}', which bytes alone do not locate; "
                "pass the model's path (or base_dir)"
            )
        found = self.folder / location
        # a model that is itself a link (a download cache) has its side files where it really lies
        roots = [self.folder.resolve()]
        if self.path is not None:
            roots.append(self.path.resolve().parent)
        real = found.resolve()
        if not any(real.is_relative_to(root) for root in roots):
            raise ModelError(f"{what} lie in '{location}', a link to outside the model's folder")
        if not real.is_file():
            raise ModelError(
                f"{what} lie in the side file '{location}', which is missing from {self.folder}; "
                "put it beside the model"
            )
        return found


def _map(path: Path) -> memoryview:
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_size < _READ_BELOW:
                return memoryview(file.read())
            return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    except OSError as e:
        raise ModelError(f"{path}: cannot be read: {e.strerror or e}") from e


def open_source(
    source: str | Path | bytes | onnx.ModelProto, base_dir: Path | None = None
) -> Source:
    """The serialized model behind a path, bytes or a proto.

    Raises:
        ModelError: it cannot be read, or is recognised as something else than ONNX.
    """
    if isinstance(source, onnx.ModelProto):
        try:
            data = source.SerializeToString(deterministic=True)
        except (ValueError, DecodeError) as e:
            raise ModelError(
                "the ModelProto is above protobuf's limit of 2 GB; save it with external data and "
                "pass the path"
            ) from e
        return Source("(ModelProto)", memoryview(data), folder=base_dir)
    if isinstance(source, (bytes, bytearray, memoryview)):
        found = Source("(bytes)", memoryview(source), folder=base_dir)
    else:
        path = Path(source)
        if path.is_dir():
            raise ModelError(f"{path} is a folder; pass the .onnx file")
        if not path.exists():
            raise ModelError(f"{path}: no such file")
        found = Source(str(path), _map(path), path=path, folder=base_dir or path.parent)
    recognise(found.data, found.name)
    return found


def parse(source: Source) -> tuple[oir.Model, list[Note]]:
    """The model, its weights mapped.

    Raises:
        ModelError: the bytes are no valid ONNX model, or weights are missing.
    """
    try:
        small = cut_tensors(source.data, _MAP_FROM)
    except WireError as e:
        raise ModelError(f"{source.name} is not an ONNX model, or is truncated: it {e}") from e
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(small)
    except DecodeError as e:
        raise ModelError(
            f"{source.name} is not an ONNX model: its bytes are of another kind"
        ) from e
    check_proto(proto, source.name)
    notes = densify(proto)
    if proto.training_info:
        notes.append(Note("", "training information dropped", True))
    with _quiet():
        try:
            model = oir.from_proto(proto)
        except Exception as e:
            raise ModelError(f"{source.name} is not a valid ONNX model: {_root_cause(e)}") from e
    map_weights(model, source)
    return model, notes


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """What onnx_ir warns of while parsing is checked, and said, afterwards."""
    logger = logging.getLogger("onnx_ir")
    before, logger.disabled = logger.disabled, True
    children = [logging.getLogger(n) for n in ("onnx_ir.serde", "onnx_ir._core")]
    levels = [c.level for c in children]
    for child in children:
        child.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.disabled = before
        for child, level in zip(children, levels, strict=True):
            child.setLevel(level)


def _root_cause(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return " ".join(str(error).split())[:300]


def map_weights(model: oir.Model, source: Source) -> None:
    """Replace every tensor by one that holds (or maps) its data.

    Raises:
        ModelError: data are missing, too short, or do not fit the shape.
    """

    def convert(tensor: oir.TensorProtocol) -> oir.TensorProtocol:
        return _in_memory(tensor, source)

    for_each_tensor(model, convert)


Convert = Callable[[oir.TensorProtocol], oir.TensorProtocol]


def for_each_tensor(model: oir.Model, convert: Convert) -> None:
    """Replace every initializer, then every tensor attribute (subgraphs and functions too)."""
    for_each_initializer(model, convert)
    for_each_attribute(model, convert)


def for_each_initializer(model: oir.Model, convert: Convert) -> None:
    """Replace every initializer's tensor."""
    for graph in model.graphs():
        for value in graph.initializers.values():
            if value.const_value is not None:
                value.const_value = convert(value.const_value)


def for_each_attribute(model: oir.Model, convert: Convert) -> None:
    """Replace every tensor that is an attribute (of Constant nodes, mostly)."""
    for node in _all_nodes(model):
        for name, attr in list(node.attributes.items()):
            if attr.is_ref():
                continue
            if attr.type == oir.AttributeType.TENSOR:
                # not as_tensor(): it checks a protocol, which took a third of a model's loading
                before = attr.value
                tensor = convert(before)
                if tensor is not before:
                    node.attributes[name] = oir.AttrTensor(name, tensor, doc_string=attr.doc_string)
            elif attr.type == oir.AttributeType.TENSORS:
                tensors = [convert(t) for t in attr.as_tensors()]
                node.attributes[name] = oir.AttrTensors(name, tensors, doc_string=attr.doc_string)


def _all_nodes(model: oir.Model) -> Iterator[oir.Node]:
    yield from model.graph.all_nodes()
    for function in model.functions.values():
        yield from function.all_nodes()


def _in_memory(tensor: oir.TensorProtocol, source: Source) -> oir.TensorProtocol:
    name = tensor.name or "(unnamed)"
    shape = [int(d) for d in tensor.shape.numpy()]
    if tensor.dtype == oir.DataType.UNDEFINED:
        raise ModelError(f"{source.name}: tensor '{name}' has no element type")
    if tensor.dtype == oir.DataType.STRING:
        return tensor
    if isinstance(tensor, oir.ExternalTensor):
        location = str(tensor.location)
        data = source.data if location == CUT_LOCATION else source.side_file(location, name)
        where = "the model" if location == CUT_LOCATION else f"'{location}'"
        needed = _nbytes(shape, tensor.dtype)
        offset, length = tensor.offset or 0, tensor.length
        if length is not None and length != needed:
            raise ModelError(
                f"{source.name}: tensor '{name}' of shape {shape} needs {needed} bytes, "
                f"{where} gives it {length}"
            )
        if offset < 0 or offset + needed > len(data):
            raise ModelError(
                f"{source.name}: tensor '{name}' needs bytes {offset} to {offset + needed} of "
                f"{where}, which has {len(data)}; the file is truncated or of another model"
            )
        raw = np.frombuffer(data[offset : offset + needed], dtype=np.uint8)
    elif isinstance(tensor, oir.serde.TensorProtoTensor):
        if tensor.raw.HasField("raw_data"):
            raw = np.frombuffer(tensor.raw.raw_data, dtype=np.uint8)
        else:
            raw = np.frombuffer(tensor.tobytes(), dtype=np.uint8)
        needed = _nbytes(shape, tensor.dtype)
        if raw.size != needed:
            raise ModelError(
                f"{source.name}: tensor '{name}' of shape {shape} needs {needed} bytes, "
                f"the model gives it {raw.size}"
            )
    else:
        return tensor
    return _tensor(raw, tensor, shape)


def _nbytes(shape: list[int], dtype: oir.DataType) -> int:
    return math.ceil(math.prod(shape) * dtype.bitwidth / 8)


def _tensor(
    raw: npt.NDArray[np.uint8], like: oir.TensorProtocol, shape: list[int]
) -> oir.TensorProtocol:
    dtype = like.dtype
    if raw.size < _MAP_FROM:
        raw = raw.copy()
    doc, props = like.doc_string or None, dict(like.metadata_props) or None
    if dtype.bitwidth < 8:
        return oir.PackedTensor(
            raw, dtype, shape=shape, name=like.name, doc_string=doc, metadata_props=props
        )
    array = raw.view(np.dtype(dtype.numpy())).reshape(shape)
    return oir.Tensor(array, dtype=dtype, name=like.name, doc_string=doc, metadata_props=props)
