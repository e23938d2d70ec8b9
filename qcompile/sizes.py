"""How large a model is on disk."""

from __future__ import annotations

from pathlib import Path

import onnx
from google.protobuf.message import DecodeError
from onnx.external_data_helper import ExternalDataInfo, uses_external_data

__all__ = ["model_bytes", "side_files"]


def side_files(path: Path) -> list[str]:
    """External data files as the model names them; none where it cannot be read as ONNX."""
    try:
        proto = onnx.load(path, load_external_data=False)
    except (DecodeError, OSError, ValueError):
        return []
    tensors = filter(uses_external_data, proto.graph.initializer)
    return sorted({ExternalDataInfo(tensor).location for tensor in tensors})


def model_bytes(path: Path) -> int | None:
    """Size of a model with its external data; None where there is no such file."""
    if not path.is_file():
        return None
    sides = [path.parent / side for side in side_files(path)]
    return path.stat().st_size + sum(side.stat().st_size for side in sides if side.is_file())
