"""Writes a model: the same bytes for the same model, whatever the folder; all or nothing.

Weights are spliced into the serialized graph while writing, one at a time, so that memory does
not grow with them (see ``wire``). Above a limit they go to a side file ``NAME.data``.
"""

from __future__ import annotations

import contextlib
import os
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as oir

from qcompile.ir.errors import ModelError, OutputError
from qcompile.ir.read import for_each_attribute, for_each_initializer, for_each_tensor
from qcompile.ir.wire import CUT_LOCATION, Chunk, Field, encode_length, rewrite, total_size

__all__ = ["SideFile", "model_bytes", "model_chunks", "needed_ir_version", "save_model"]

_SPLICE_FROM = 1024
"""Bytes from which a tensor is kept out of protobuf's hands."""

_ALIGN_FROM, _ALIGN = 1 << 20, 4096
"""Tensors of the side file from 1 MiB on start on a page, so that they can be mapped."""

_PROTOBUF_LIMIT = 2**31 - 1

_MIN_IR: dict[str, int] = {
    "FLOAT8E4M3FN": 9,
    "FLOAT8E4M3FNUZ": 9,
    "FLOAT8E5M2": 9,
    "FLOAT8E5M2FNUZ": 9,
    "INT4": 10,
    "UINT4": 10,
    "FLOAT4E2M1": 11,
    "FLOAT8E8M0": 12,
    "INT2": 13,
    "UINT2": 13,
}
"""dtype -> first IR version that has it (onnx.in.proto)."""


def model_bytes(model: oir.Model) -> bytes:
    """The serialized model with its weights inside.

    Raises:
        ModelError: it is above 2 GB, which no protobuf reader takes.
    """
    chunks = model_chunks(model)
    size = total_size(chunks)
    if size > _PROTOBUF_LIMIT:
        raise ModelError(
            f"the model has {size} bytes with its weights inside, above protobuf's limit of 2 GB; "
            "it can only be written as a file with a side file"
        )
    return b"".join(chunks)


def model_chunks(model: oir.Model, side: SideFile | None = None) -> list[Chunk]:
    """The serialized model in pieces; big weights are views, copied only when written.

    With a side file, initializers go there and the model says where (weights that are attributes
    of Constant nodes stay inside: runtimes do not look for those elsewhere).
    """
    return _Cut.of(model).chunks(side)


@dataclass(frozen=True)
class _Cut:
    """A serialized model without its big tensors, and these.

    Attributes:
        small: the message, with a placeholder for each big tensor whose offset is its index.
        tensors: the big tensors.
        initializers: how many of them are initializers; they come first.
    """

    small: bytes
    tensors: list[oir.TensorProtocol]
    initializers: int

    @classmethod
    def of(cls, model: oir.Model) -> _Cut:
        """Of a model, which stays as it is."""
        with _cut_out(model) as (tensors, initializers):
            return cls(_serialize(model), tensors, initializers)

    @property
    def size(self) -> int:
        """Bytes with all weights inside, but for the placeholders."""
        return len(self.small) + sum(tensor.nbytes for tensor in self.tensors)

    def chunks(self, side: SideFile | None = None) -> list[Chunk]:
        """The whole message in pieces; with a side file, initializers go there."""

        def splice(buffer: memoryview, found: list[Field]) -> list[Chunk] | None:
            index = _cut_index(buffer, found)
            if index is None:
                return None
            data = _bytes_of(self.tensors[index])
            rest: list[Chunk] = [
                buffer[f.start : f.end] for f in found if f.number not in (_EXTERNAL, _LOCATION)
            ]
            if side is not None and index < self.initializers:
                return [*rest, side.add(data)]
            return [*rest, encode_length(_RAW_DATA, len(data)), data]

        marks = _places(self.small, CUT_LOCATION.encode())

        def holds(start: int, end: int) -> bool:
            at = bisect_left(marks, start)
            return at < len(marks) and marks[at] < end

        return rewrite(memoryview(self.small), splice, holds)


def _places(data: bytes, mark: bytes) -> list[int]:
    found, at = [], data.find(mark)
    while at >= 0:
        found.append(at)
        at = data.find(mark, at + 1)
    return found


@dataclass
class SideFile:
    """Plan of a side file: which tensor starts where."""

    location: str
    places: list[tuple[int, memoryview]] = field(default_factory=list)
    size: int = 0

    def add(self, data: memoryview) -> bytes:
        """Plan ``data`` at the end; returns the fields of the tensor that point there."""
        if len(data) >= _ALIGN_FROM:
            self.size = -(-self.size // _ALIGN) * _ALIGN
        offset = self.size
        self.places.append((offset, data))
        self.size += len(data)
        place = onnx.TensorProto(data_location=onnx.TensorProto.EXTERNAL)
        entries = {"location": self.location, "offset": str(offset), "length": str(len(data))}
        for key, value in entries.items():
            place.external_data.add(key=key, value=value)
        packed: bytes = place.SerializeToString(deterministic=True)
        return packed

    def pieces(self) -> Iterator[Chunk]:
        """The file's content in order."""
        at = 0
        for offset, data in self.places:
            yield bytes(offset - at)
            yield data
            at = offset + len(data)


_RAW_DATA, _EXTERNAL, _LOCATION = 9, 13, 14


def _cut_index(buffer: memoryview, found: Sequence[Field]) -> int | None:
    if not any(f.number == _LOCATION for f in found):
        return None
    text = b"".join(bytes(buffer[f.start : f.end]) for f in found if f.number == _EXTERNAL)
    place = {e.key: e.value for e in onnx.TensorProto.FromString(text).external_data}
    return int(place["offset"]) if place.get("location") == CUT_LOCATION else None


def _bytes_of(tensor: oir.TensorProtocol) -> memoryview:
    if isinstance(tensor, oir.PackedTensor):
        return tensor.numpy_packed().reshape(-1).data
    array = tensor.numpy()
    if tensor.dtype.bitwidth >= 8 and array.flags.c_contiguous and array.size:
        return array.reshape(-1).view(np.uint8).data
    return memoryview(tensor.tobytes())


@contextlib.contextmanager
def _cut_out(model: oir.Model) -> Iterator[tuple[list[oir.TensorProtocol], int]]:
    """Within, big tensors are placeholders whose offset is their index in the list; then restored.

    Yields the list and how many of it are initializers (they come first).
    """
    tensors: list[oir.TensorProtocol] = []
    originals: list[oir.TensorProtocol] = []

    def cut(tensor: oir.TensorProtocol) -> oir.TensorProtocol:
        originals.append(tensor)
        if tensor.dtype == oir.DataType.STRING or tensor.nbytes < _SPLICE_FROM:
            return tensor
        tensors.append(tensor)
        return oir.ExternalTensor(
            CUT_LOCATION,
            offset=len(tensors) - 1,
            length=tensor.nbytes,
            dtype=tensor.dtype,
            shape=oir.Shape(tensor.shape.numpy()),
            name=tensor.name or "",
            doc_string=tensor.doc_string,
            metadata_props=dict(tensor.metadata_props),
        )

    for_each_initializer(model, cut)
    initializers = len(tensors)
    for_each_attribute(model, cut)
    try:
        yield tensors, initializers
    finally:
        back = iter(originals)
        for_each_tensor(model, lambda _: next(back))


def _serialize(model: oir.Model) -> bytes:
    data: bytes = oir.to_proto(model).SerializeToString(deterministic=True)
    return data


def save_model(model: oir.Model, path: Path, *, external_above: int = 1_900_000_000) -> None:
    """Write ``path``, and ``NAME.data`` beside it when model and weights exceed ``external_above``.

    Both are written under temporary names and renamed when complete. The IR version is raised
    when a tensor's type needs it.

    Raises:
        OutputError: the file cannot be written (no folder, no permission, disk full).
    """
    path = Path(path)
    model.ir_version = max(model.ir_version, needed_ir_version(model))
    cut = _Cut.of(model)
    files: list[tuple[Path, Sequence[Chunk] | Iterator[Chunk]]] = []
    side = SideFile(f"{path.name}.data") if cut.size > external_above else None
    chunks = cut.chunks(side)
    if side is not None:
        files.append((path.with_name(side.location), side.pieces()))
    files.append((path, chunks))
    written: list[tuple[Path, Path]] = []
    try:
        for target, pieces in files:
            temporary = target.with_name(f".{target.name}.{os.getpid()}.part")
            written.append((temporary, target))
            with temporary.open("wb") as out:
                out.writelines(pieces)
        for temporary, target in written:
            temporary.replace(target)
    except OSError as e:
        raise OutputError(f"{path} cannot be written: {e.strerror or e}") from e
    finally:
        for temporary, _ in written:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)


def needed_ir_version(model: oir.Model) -> int:
    """The lowest IR version that knows every type the model uses (3 if nothing special)."""
    needed = 3
    for graph in model.graphs():
        values = [*graph.inputs, *graph.initializers.values()]
        values += [v for node in graph for v in node.outputs]
        for value in values:
            dtype = value.dtype if value.const_value is None else value.const_value.dtype
            if dtype is not None:
                needed = max(needed, _MIN_IR.get(dtype.name, 0))
    return needed
