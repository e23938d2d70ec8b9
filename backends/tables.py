"""Every Target as data: what one runtime on one device can do. The rows stand in tables_*.py."""

from __future__ import annotations

import difflib
from collections.abc import Callable

from qcompile.backends.devices import get_device
from qcompile.backends.tables_ort import ort_fp16, ort_int8
from qcompile.backends.tables_trt import (
    tensorrt_bf16,
    tensorrt_fp8,
    tensorrt_fp16,
    tensorrt_int4,
    tensorrt_int8,
    tensorrt_nvfp4,
)
from qcompile.backends.tables_weights import ort_int2, ort_int4, ort_int8_weights, ort_nf4
from qcompile.ir.errors import TargetError
from qcompile.ir.target import Target

__all__ = ["get_target", "target_names"]

_TARGETS: dict[str, Callable[[str | None], Target]] = {
    "ort-int8": lambda device: ort_int8(get_device(device)),
    "ort-fp16": lambda device: ort_fp16(get_device(device)),
    "ort-int8-weights": lambda device: ort_int8_weights(get_device(device)),
    "ort-int4": lambda device: ort_int4(get_device(device)),
    "ort-nf4": lambda device: ort_nf4(get_device(device)),
    "ort-int2": lambda device: ort_int2(get_device(device)),
    "tensorrt-int8": tensorrt_int8,
    "tensorrt-fp8": tensorrt_fp8,
    "tensorrt-nvfp4": tensorrt_nvfp4,
    "tensorrt-int4": tensorrt_int4,
    "tensorrt-fp16": tensorrt_fp16,
    "tensorrt-bf16": tensorrt_bf16,
}


def target_names() -> tuple[str, ...]:
    """What ``--target`` takes."""
    return tuple(_TARGETS)


def get_target(name: str, device: str | None = None) -> Target:
    """The table of a target on a device ("native" or None: this machine's).

    Raises:
        TargetError: unknown target or device, with the nearest names.
    """
    make = _TARGETS.get(name)
    if make is None:
        near = difflib.get_close_matches(name, _TARGETS, n=3, cutoff=0.3) or list(_TARGETS)
        raise TargetError(f"target '{name}' is unknown; nearest: {', '.join(near)}")
    return make(device)
