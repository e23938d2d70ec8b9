"""What the planner is given: plain numbers for each site and each tensor between sites."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from qcompile.ir.errors import OptionError
from qcompile.ir.plan import FLOAT, INT8, INT8_DYNAMIC

__all__ = ["LABELS", "PlanNode", "PlanTensor", "Problem"]

LABELS = (FLOAT, INT8, INT8_DYNAMIC)


@dataclass(frozen=True)
class PlanNode:
    """A site: one node, or a group that the runtime fuses, which takes one precision.

    Attributes:
        origin: stable origin id of the site's anchor.
        op_type: the anchor's operator.
        float_ns: latency of the float form, nanoseconds.
        int_ns: latency of the static integer form; None when the target has none.
        dynamic_ns: latency of the form that quantizes its activation at run time; None when none.
        sensitivity: output error energy when this site alone is int8, relative to the output's.
        sensitivity_dynamic: the same for int8-dynamic; None means as for int8.
        float_output: the integer kernel writes float (MatMulIntegerToFloat).
        forbidden: labels that this site must not take.
        pinned: the label that the user gave, or None.
        float_bytes: what its constant weights take in float.
        integer_bytes: what they take in any integer form.
    """

    origin: str
    op_type: str
    float_ns: int
    int_ns: int | None = None
    dynamic_ns: int | None = None
    sensitivity: float = 0.0
    sensitivity_dynamic: float | None = None
    float_output: bool = False
    forbidden: frozenset[str] = frozenset()
    pinned: str | None = None
    float_bytes: int = 0
    integer_bytes: int = 0

    def labels(self) -> tuple[str, ...]:
        """The labels that this site may take, in the order of ``LABELS``."""
        having = {FLOAT}
        if self.int_ns is not None:
            having.add(INT8)
        if self.dynamic_ns is not None:
            having.add(INT8_DYNAMIC)
        if self.pinned is not None:
            return (self.pinned,) if self.pinned in having else ()
        return tuple(label for label in LABELS if label in having - self.forbidden)

    def latency_ns(self, label: str) -> int:
        """Latency of one form.

        Raises:
            OptionError: the site has no such form.
        """
        found = {FLOAT: self.float_ns, INT8: self.int_ns, INT8_DYNAMIC: self.dynamic_ns}.get(label)
        if found is None:
            raise OptionError(
                f"node '{self.origin}' ({self.op_type}) has no '{label}' form on this target; "
                f"use one of {', '.join(self.labels()) or FLOAT}"
            )
        return found

    def error(self, label: str) -> float:
        """Relative output error energy that one form causes."""
        if label == FLOAT:
            return 0.0
        if label == INT8_DYNAMIC and self.sensitivity_dynamic is not None:
            return self.sensitivity_dynamic
        return self.sensitivity


@dataclass(frozen=True)
class PlanTensor:
    """A tensor between sites; each conversion is paid once for the tensor, whatever its consumers.

    Attributes:
        name: of the tensor.
        producer: origin of the site that writes it; None for a graph input or a node outside the
            plan, which write float.
        consumers: origins of the sites that read it: integers when they are int8, else float.
        quantize_ns: latency of one QuantizeLinear of it.
        dequantize_ns: latency of one DequantizeLinear of it.
        write_error: relative output error energy when its producer is int8 and something reads it
            in float: that reader sees rounded values. What int8 readers see is their own error.
        float_read: a graph output or a node outside the plan reads it, always in float.
    """

    name: str
    producer: str | None
    consumers: tuple[str, ...]
    quantize_ns: int = 0
    dequantize_ns: int = 0
    write_error: float = 0.0
    float_read: bool = False


@dataclass(frozen=True)
class Problem:
    """Sites in graph order, the tensors between them, and which sites must agree.

    Attributes:
        nodes: the sites.
        tensors: the tensors that some site reads or writes.
        ties: groups of origins that are all int8 or none of them (shared scales, one kernel).
        base_ns: latency outside the plan, added to every total.
    """

    nodes: tuple[PlanNode, ...]
    tensors: tuple[PlanTensor, ...] = ()
    ties: tuple[tuple[str, ...], ...] = ()
    base_ns: int = 0
    index: Mapping[str, int] = field(init=False, repr=False, compare=False, default_factory=dict)

    def __post_init__(self) -> None:
        """Check that names fit together and that every site has a label left.

        Raises:
            OptionError: an origin twice, an unknown origin, a negative or not finite number, a
                site or a tied group without a legal label.
        """
        index = {node.origin: i for i, node in enumerate(self.nodes)}
        object.__setattr__(self, "index", index)
        if len(index) != len(self.nodes):
            seen: set[str] = set()
            twice = next(n.origin for n in self.nodes if n.origin in seen or seen.add(n.origin))  # type: ignore[func-returns-value]
            raise OptionError(
                f"the planner was given node '{twice}' twice; one entry a site is needed"
            )
        for node in self.nodes:
            _check_node(node)
        for tensor in self.tensors:
            ends = (*tensor.consumers, *((tensor.producer,) if tensor.producer is not None else ()))
            for end in ends:
                if end not in index:
                    raise OptionError(
                        f"tensor '{tensor.name}' names node '{end}', which is no site"
                    )
            costs = (tensor.quantize_ns, tensor.dequantize_ns, tensor.write_error)
            if not all(0 <= cost < float("inf") for cost in costs):
                raise OptionError(
                    f"tensor '{tensor.name}' has conversion costs {costs}; "
                    "finite numbers of 0 or more are needed"
                )
        for group in self.ties:
            for origin in group:
                if origin not in index:
                    raise OptionError(f"a tie names node '{origin}', which is no site")


def _check_node(node: PlanNode) -> None:
    numbers = (
        node.float_ns,
        node.int_ns,
        node.dynamic_ns,
        node.sensitivity,
        node.sensitivity_dynamic,
    )
    for number in numbers:
        if number is not None and not 0 <= number < float("inf"):
            raise OptionError(
                f"node '{node.origin}' has cost or sensitivity {number}; "
                "a finite number of 0 or more is needed"
            )
    if not node.labels():
        what = f"is pinned to '{node.pinned}'" if node.pinned else "has every label forbidden"
        raise OptionError(
            f"node '{node.origin}' ({node.op_type}) {what}, but the target offers "
            f"float{' int8' if node.int_ns is not None else ''}"
            f"{' int8-dynamic' if node.dynamic_ns is not None else ''}; change the plan or the target"
        )
