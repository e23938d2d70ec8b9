"""How large a model is on disk."""

from __future__ import annotations

from pathlib import Path

import onnx
from google.protobuf.message import DecodeError
from onnx.external_data_helper import ExternalDataInfo, uses_external_data

__all__ = ["model_bytes"]


def model_bytes(path: Path) -> int | None:
    """Size of a model with its external data; None where the file cannot be read as ONNX."""
    if not path.is_file():
        return None
    size = path.stat().st_size
    try:
        proto = onnx.load(path, load_external_data=False)
    except (DecodeError, OSError, ValueError):
        return size
    sides = {
        ExternalDataInfo(tensor).location
        for tensor in proto.graph.initializer
        if uses_external_data(tensor)
    }
    return size + sum(
        (path.parent / side).stat().st_size for side in sides if (path.parent / side).is_file()
    )
