"""Which integer kernels ONNX Runtime's CPU provider has: asked of the installed runtime, not remembered.

The registry tells the input types a kernel was built for; what it refuses inside those types (a
scale per channel, a missing zero point) stands in the rules that write the operator.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

__all__ = ["MICROSOFT", "RECORDED", "KernelSet", "installed_kernels", "recorded_kernels"]

MICROSOFT = "com.microsoft"

RECORDED: dict[tuple[str, str], tuple[int, tuple[str, ...]]] = {
    ("", "Clip"): (12, ("int8", "uint8")),
    ("", "Concat"): (4, ("int8", "uint8")),
    ("", "DepthToSpace"): (11, ("uint8",)),
    ("", "DynamicQuantizeLinear"): (11, ("uint8",)),
    ("", "Expand"): (8, ("int8", "uint8")),
    ("", "Flatten"): (1, ("int8", "uint8")),
    ("", "Gather"): (1, ("int8", "uint8")),
    ("", "GatherElements"): (11, ("int8", "uint8")),
    ("", "GatherND"): (11, ("int8", "uint8")),
    ("", "Identity"): (1, ("int8", "uint8")),
    ("", "MaxPool"): (12, ("int8", "uint8")),
    ("", "Pad"): (13, ("int8", "uint8")),
    ("", "QLinearConv"): (10, ("int8", "uint8")),
    ("", "QLinearMatMul"): (10, ("int8", "uint8")),
    ("", "ReduceMax"): (12, ("int8", "uint8")),
    ("", "ReduceMin"): (12, ("int8", "uint8")),
    ("", "Reshape"): (5, ("int8", "uint8")),
    ("", "Resize"): (10, ("int8", "uint8")),
    ("", "Slice"): (1, ("int8", "uint8")),
    ("", "Split"): (2, ("int8", "uint8")),
    ("", "Squeeze"): (1, ("int8", "uint8")),
    ("", "Tile"): (6, ("int8", "uint8")),
    ("", "Transpose"): (1, ("int8", "uint8")),
    ("", "Unsqueeze"): (1, ("int8", "uint8")),
    (MICROSOFT, "DynamicQuantizeLSTM"): (1, ("int8", "uint8")),
    (MICROSOFT, "DynamicQuantizeMatMul"): (1, ("int8", "uint8")),
    (MICROSOFT, "MatMulIntegerToFloat"): (1, ("int8", "uint8")),
    (MICROSOFT, "NhwcMaxPool"): (1, ("int8", "uint8")),
    (MICROSOFT, "QGemm"): (1, ("int8", "uint8")),
    (MICROSOFT, "QLinearAdd"): (1, ("int8", "uint8")),
    (MICROSOFT, "QLinearConcat"): (1, ("int8", "uint8")),
    (MICROSOFT, "QLinearGlobalAveragePool"): (1, ("int8", "uint8")),
    (MICROSOFT, "QLinearLeakyRelu"): (1, ("int8", "uint8")),
    (MICROSOFT, "QLinearMul"): (1, ("int8", "uint8")),
    (MICROSOFT, "QLinearSigmoid"): (1, ("int8", "uint8")),
    (MICROSOFT, "QLinearSoftmax"): (1, ("int8", "uint8")),
    (MICROSOFT, "QLinearWhere"): (1, ("int8", "uint8")),
}
"""(domain, operator) -> (oldest operator-set version with an 8-bit kernel, types), in 1.23 to 1.31 alike."""

_UNTYPED = {"QLinearConcat", "QLinearGlobalAveragePool"}
"""Registered without a type constraint on their 8-bit tensors."""


@dataclass(frozen=True)
class KernelSet:
    """8-bit kernels: (domain, operator) -> [(first version, last version, types of any slot)]."""

    rows: dict[tuple[str, str], tuple[tuple[int, int, frozenset[str]], ...]]

    def has(self, op_type: str, domain: str, opset: int, dtype: str) -> bool:
        """Whether a kernel takes ``dtype`` ("uint8" or "int8") at this version of its operator set."""
        return any(
            first <= opset <= last and dtype in types
            for first, last, types in self.rows.get((domain, op_type), ())
        )


def recorded_kernels() -> KernelSet:
    """The kernels of every supported runtime, when none is installed to ask."""
    return KernelSet(
        {key: ((first, 2**31 - 1, frozenset(types)),) for key, (first, types) in RECORDED.items()}
    )


@lru_cache(maxsize=1)
def installed_kernels() -> KernelSet:
    """The 8-bit kernels of the installed ONNX Runtime, or the recorded ones without a runtime."""
    try:
        from onnxruntime.capi import onnxruntime_pybind11_state as state

        definitions = state.get_all_opkernel_def()
    except (ImportError, AttributeError):
        return recorded_kernels()
    rows: dict[tuple[str, str], list[tuple[int, int, frozenset[str]]]] = {}
    for one in definitions:
        if one.provider != "CPUExecutionProvider":
            continue
        types = {
            t.removeprefix("tensor(").removesuffix(")")
            for ts in one.type_constraints.values()
            for t in ts
        }
        eight = types & {"int8", "uint8"}
        if one.op_name in _UNTYPED:
            eight = {"int8", "uint8"}
        if eight:
            first, last = one.version_range
            rows.setdefault((one.domain, one.op_name), []).append((first, last, frozenset(eight)))
    return KernelSet({key: tuple(found) for key, found in rows.items()})
