"""How large a model is on disk."""

from __future__ import annotations

import mmap
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError
from onnx.external_data_helper import ExternalDataInfo, uses_external_data

from qcompile.ir.wire import CUT_LOCATION, WireError, cut_tensors

__all__ = ["LOADED_WHOLE", "model_bytes", "side_files"]

LOADED_WHOLE = 1 << 26
"""Bytes from which a model that is written to be opened has its weights beside it: mapped, not parsed."""

_SMALL = 1 << 16
"""Bytes of a tensor that may be parsed."""


def side_files(path: Path) -> list[str]:
    """External data files as the model names them; none where it cannot be read as ONNX."""
    try:
        with (
            path.open("rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped,
            memoryview(mapped) as data,
        ):
            # parsed whole, a model with its weights inside would lie in memory for its file names
            proto = onnx.ModelProto.FromString(cut_tensors(data, _SMALL))
    except (DecodeError, OSError, ValueError, WireError):
        return []
    tensors = filter(uses_external_data, proto.graph.initializer)
    return sorted({ExternalDataInfo(tensor).location for tensor in tensors} - {CUT_LOCATION})


def model_bytes(path: Path) -> int | None:
    """Size of a model with its external data; None where there is no such file."""
    if not path.is_file():
        return None
    sides = [path.parent / side for side in side_files(path)]
    return path.stat().st_size + sum(side.stat().st_size for side in sides if side.is_file())
