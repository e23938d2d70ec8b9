"""What conversions cost by size: Q, DQ, and rearranging for a kernel's layout.

Conversions that a mixed plan will need stand in neither the float nor the integer model, so they
are timed alone, at four sizes, and scaled by how those that the integer model has compare.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from qcompile.backends.ort import open_session
from qcompile.ir.errors import ModelError
from qcompile.planner.kernel_times import Conversion

__all__ = ["UnitCosts", "measure_unit_costs", "table_unit_costs"]

SIZES = (64, 4096, 65536, 1048576)
COPIES = 6
"""How many operators more the second timing graph has than the first: a call's own cost cancels."""

CHANNELS = 64

START_NS = 400.0
"""What starting an operator costs beside its work: a chain of operators on one element."""

Curve = tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class UnitCosts:
    """Nanoseconds by elements, interpolated between the sizes measured.

    Attributes:
        curves: "quantize", "dequantize", "transpose" (uint8, NCHW to NHWC), "block" and "unblock"
            (float, NCHW to NCHWc and back).
        factor: in context against alone.
        mac_ns: one float multiply-accumulate, for the table.
    """

    curves: Mapping[str, Curve]
    factor: float = 1.0
    mac_ns: float = 0.02

    def quantize(self, elements: int) -> float:
        """QuantizeLinear of so many elements."""
        return self._at("quantize", elements)

    def dequantize(self, elements: int) -> float:
        """DequantizeLinear of so many elements."""
        return self._at("dequantize", elements)

    def transpose(self, elements: int) -> float:
        """Integers to or from NHWC."""
        return self._at("transpose", elements)

    def block(self, elements: int) -> float:
        """Floats into blocks."""
        return self._at("block", elements)

    def unblock(self, elements: int) -> float:
        """Floats out of blocks."""
        return self._at("unblock", elements)

    def move(self, elements: int) -> float:
        """Reading and writing so many floats, for the table."""
        return self._at("dequantize", elements)

    def scaled(self, seen: Iterable[Conversion]) -> UnitCosts:
        """The same, adjusted to conversions seen in context, where caches are colder."""
        rows = list(seen)
        alone = sum(
            self.quantize(c.elements) if c.quantize else self.dequantize(c.elements) for c in rows
        )
        here = sum(c.ns for c in rows)
        if alone <= 0 or here <= 0:
            return self
        return replace(self, factor=float(np.clip(here / alone, 0.5, 5.0)))

    def _at(self, name: str, elements: int) -> float:
        curve = self.curves.get(name)
        if not curve:
            return 0.0
        sizes, times = [size for size, _ in curve], [ns for _, ns in curve]
        if elements > sizes[-1]:
            return self.factor * times[-1] * elements / sizes[-1]
        return float(self.factor * np.interp(elements, sizes, times))


@functools.cache
def measure_unit_costs(*, threads: int | None = None) -> UnitCosts:
    """Time conversions on this machine; about half a second, once a process."""
    curves: dict[str, Curve] = {}
    for name in ("quantize", "dequantize", "transpose", "block", "unblock"):
        points = []
        for size in SIZES:
            try:
                points.append((size, _time(name, size, threads)))
            except ModelError:
                break  # this build of the runtime has no blocked layout (not x86)
        curves[name] = _curve(points)
    return UnitCosts(curves)


def _curve(points: Sequence[tuple[int, float]]) -> Curve:
    """Costs above the smallest tensor's, which is all start: of the operator and of its Shape."""
    found: list[tuple[int, float]] = []
    for size, ns in points:
        # work grows with size; noise must not make it shrink
        above = max(ns - points[0][1], found[-1][1] - START_NS if found else 0.0)
        found.append((size, START_NS + above))
    return tuple(found)


def table_unit_costs() -> UnitCosts:
    """Costs of a typical CPU core: 0.15 ns an element for conversions, 0.02 ns a float MAC."""
    line = ((64, START_NS), (1_000_000, START_NS + 150_000.0))
    return UnitCosts({"quantize": line, "dequantize": line})


def _time(name: str, size: int, threads: int | None) -> float:
    side = round((size / CHANNELS) ** 0.5)
    integers = name in ("dequantize", "transpose")
    feed = {"x": np.zeros((1, CHANNELS, side, side), np.uint8 if integers else np.float32)}
    one, many = (
        _call_ns(_build([_operator(name)] * copies, integers), feed, threads)
        for copies in (1, 1 + COPIES)
    )
    return max(0.0, many - one) / COPIES


def _call_ns(model: bytes, feed: Mapping[str, Any], threads: int | None) -> float:
    # without optimizations, or equal operators would become one
    run = open_session(model, threads=threads, optimize=False).raw.run
    run(None, feed)
    times: list[int] = []
    begin = time.perf_counter()
    while len(times) < 5 or (time.perf_counter() - begin < 0.02 and len(times) < 200):
        start = time.perf_counter_ns()
        run(None, feed)
        times.append(time.perf_counter_ns() - start)
    # what disturbs only ever adds
    return float(np.mean(np.sort(times)[: (len(times) + 1) // 2]))


def _operator(name: str) -> tuple[str, str, list[str], dict[str, Any]]:
    """(operator, domain, further inputs, attributes)."""
    if name == "quantize":
        return "QuantizeLinear", "", ["scale", "zero"], {}
    if name == "dequantize":
        return "DequantizeLinear", "", ["scale", "zero"], {}
    if name == "transpose":
        return "Transpose", "", [], {"perm": [0, 2, 3, 1]}
    if name == "block":
        return "ReorderInput", "com.microsoft.nchwc", [], {}
    return "ReorderOutput", "com.microsoft.nchwc", [], {"channels": CHANNELS}


def _build(
    operators: Sequence[tuple[str, str, list[str], dict[str, Any]]], integers: bool
) -> bytes:
    import onnx
    from onnx import TensorProto, helper

    kind = TensorProto.UINT8 if integers else TensorProto.FLOAT
    nodes, outputs = [], []
    for copy, (op_type, domain, more, attributes) in enumerate(operators):
        nodes.append(
            helper.make_node(op_type, ["x", *more], [f"t{copy}"], domain=domain, **attributes)
        )
        # only the shape leaves: handing a tensor out would cost as much as making it
        nodes.append(helper.make_node("Shape", [f"t{copy}"], [f"y{copy}"]))
        outputs.append(helper.make_tensor_value_info(f"y{copy}", TensorProto.INT64, None))
    graph = helper.make_graph(
        nodes,
        "conversions",
        [helper.make_tensor_value_info("x", kind, [1, CHANNELS, None, None])],
        outputs,
        [
            helper.make_tensor("scale", TensorProto.FLOAT, [], [0.01]),
            helper.make_tensor("zero", TensorProto.UINT8, [], [128]),
        ],
    )
    model = onnx.ModelProto(ir_version=8, graph=graph)
    for domain, version in (("", 17), ("com.microsoft.nchwc", 1)):
        model.opset_import.add(domain=domain, version=version)
    return bytes(model.SerializeToString())
