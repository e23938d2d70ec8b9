"""Big tensors in and out of a serialized model without a second copy of them.

Protobuf parses a model into an arena that holds every weight a second time, and refuses 2 GB.
So the weights are cut out of the bytes before parsing, and spliced in again when writing:

    [graph [initializer name dims raw_data(400 MB)]]  <->  [graph [initializer name dims CUT(offset)]]

where CUT is an ``external_data`` entry whose location no file can have. Only lengths of the
enclosing messages change. Protobuf's encoding: https://protobuf.dev/programming-guides/encoding/
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import onnx

__all__ = [
    "CUT_LOCATION",
    "Chunk",
    "Field",
    "WireError",
    "cut_tensors",
    "encode_length",
    "fields",
    "rewrite",
    "total_size",
]

CUT_LOCATION = "\x00cut"
"""External-data location that stands for bytes cut out of the model itself."""

Chunk = bytes | memoryview
"""Piece of a message; views are not copied until they are written."""

_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5

# message -> field number -> message of that field, as far as a tensor can lie within
_NESTED: dict[str, dict[int, str]] = {
    "Model": {7: "Graph", 25: "Function"},
    "Graph": {1: "Node", 5: "Tensor"},
    "Function": {7: "Node"},
    "Node": {5: "Attribute"},
    "Attribute": {5: "Tensor", 6: "Graph", 10: "Tensor", 11: "Graph"},
}
# an attribute has one value; numbers and texts of a forest are millions of fields without a tensor
_PLAIN: dict[str, frozenset[int]] = {"Attribute": frozenset({2, 3, 4, 7, 8, 9})}
_MAX_DEPTH = 64
_RAW_DATA, _FLOAT_DATA, _DATA_TYPE = 9, 4, 2


class WireError(ValueError):
    """The bytes are not a protobuf message of the expected kind."""


@dataclass(frozen=True)
class Field:
    """One field of a message: number, wire type, where tag and payload lie."""

    number: int
    kind: int
    start: int
    payload: int
    end: int


def _varint(buffer: memoryview, at: int, end: int) -> tuple[int, int]:
    result = shift = 0
    while True:
        if at >= end:
            raise WireError(f"ends within a number at byte {at}")
        byte = buffer[at]
        at += 1
        result |= (byte & 0x7F) << shift
        if byte < 0x80:
            return result, at
        shift += 7
        if shift > 63:
            raise WireError(f"holds no valid number at byte {at}")


def _encode(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append((value & 0x7F) | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def encode_length(number: int, size: int) -> bytes:
    """Tag and length that open a field of ``size`` bytes."""
    return _encode(number << 3 | _LENGTH) + _encode(size)


def fields(buffer: memoryview, start: int, end: int) -> Iterator[Field]:
    """The fields of the message in ``buffer[start:end]``.

    Raises:
        WireError: a field reaches beyond the end, or the bytes are no message.
    """
    at = start
    while at < end:
        begin = at
        tag, at = _varint(buffer, at, end)
        number, kind = tag >> 3, tag & 7
        if number == 0:
            raise WireError(f"holds no valid field at byte {begin}")
        payload = at
        if kind == _VARINT:
            _, at = _varint(buffer, at, end)
        elif kind == _FIXED64:
            at += 8
        elif kind == _FIXED32:
            at += 4
        elif kind == _LENGTH:
            size, payload = _varint(buffer, at, end)
            at = payload + size
        else:
            raise WireError(f"holds no valid field at byte {begin}")
        if at > end:
            raise WireError(
                f"is cut off: a field needs {at - payload} bytes, {end - payload} are left"
            )
        yield Field(number, kind, begin, payload, at)


def total_size(chunks: Sequence[Chunk]) -> int:
    """Bytes in all chunks together."""
    return sum(len(c) for c in chunks)


Edit = Callable[[memoryview, list[Field]], "list[Chunk] | None"]
"""Gets the buffer and a tensor's fields; returns the tensor's new chunks, or None to keep it."""


Holds = Callable[[int, int], bool]
"""Whether what lies between two places may hold a tensor that is edited; the rest is not read."""


def rewrite(buffer: memoryview, edit: Edit, holds: Holds = lambda start, end: True) -> list[Chunk]:
    """The chunks of a serialized ``ModelProto`` after ``edit`` has seen every dense tensor that ``holds``."""
    return _rewrite(buffer, 0, len(buffer), "Model", edit, holds, 0) or [buffer]


def _rewrite(
    buffer: memoryview,
    start: int,
    end: int,
    message: str,
    edit: Edit,
    holds: Holds,
    depth: int,
) -> list[Chunk] | None:
    """New chunks of one message, or None when nothing within it changed."""
    if depth > _MAX_DEPTH:
        raise WireError("nests graphs too deeply")
    if message == "Tensor":
        return edit(buffer, list(fields(buffer, start, end)))
    nested, plain = _NESTED[message], _PLAIN.get(message, ())
    out: list[Chunk] = []
    kept = start
    for one in fields(buffer, start, end):
        if one.number in plain:
            break
        inner = nested.get(one.number)
        if inner is None or one.kind != _LENGTH or not holds(one.payload, one.end):
            continue
        changed = _rewrite(buffer, one.payload, one.end, inner, edit, holds, depth + 1)
        if changed is None:
            continue
        if one.start > kept:
            out.append(buffer[kept : one.start])
        out += [encode_length(one.number, total_size(changed)), *changed]
        kept = one.end
    if kept == start:
        return None
    if kept < end:
        out.append(buffer[kept:end])
    return out


@dataclass
class _Cutter:
    at_least: int
    cut: int = field(default=0)

    def __call__(self, buffer: memoryview, found: list[Field]) -> list[Chunk] | None:
        big = [f for f in found if f.kind == _LENGTH and f.end - f.payload >= self.at_least]
        data = next((f for f in big if f.number == _RAW_DATA), None)
        if data is None:
            # packed float_data is laid out like raw_data; other typed fields are varints
            floats = [f for f in found if f.number == _FLOAT_DATA]
            dtype = next((f for f in found if f.number == _DATA_TYPE and f.kind == _VARINT), None)
            is_float = dtype is not None and buffer[dtype.payload] == onnx.TensorProto.FLOAT
            if len(floats) != 1 or floats[0] not in big or not is_float:
                return None
            data = floats[0]
        place = onnx.TensorProto(data_location=onnx.TensorProto.EXTERNAL)
        for key, value in (
            ("location", CUT_LOCATION),
            ("offset", str(data.payload)),
            ("length", str(data.end - data.payload)),
        ):
            place.external_data.add(key=key, value=value)
        self.cut += data.end - data.payload
        rest: list[Chunk] = [buffer[f.start : f.end] for f in found if f is not data]
        return [*rest, place.SerializeToString()]


def cut_tensors(buffer: memoryview, at_least: int) -> bytes:
    """A serialized model without the data of tensors of ``at_least`` bytes.

    They become external tensors at ``CUT_LOCATION`` whose offset counts from the start of
    ``buffer``.

    Raises:
        WireError: the bytes are no model.
    """
    large = rewrite(buffer, _Cutter(at_least), lambda start, end: end - start >= at_least)
    return b"".join(large)
