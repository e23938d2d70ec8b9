"""Which layer gets which precision, and why: a file that users read, edit, diff and pass back."""

from __future__ import annotations

import difflib
import fnmatch
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from qcompile.ir.errors import OptionError

__all__ = [
    "FLOAT",
    "FP8",
    "INT8",
    "INT8_DYNAMIC",
    "INT16",
    "NVFP4",
    "PLAN_VERSION",
    "TABLE",
    "WEIGHTS",
    "LayerChoice",
    "PrecisionPlan",
]

PLAN_VERSION = 1
FLOAT = "float"
INT8 = "int8"
INT8_DYNAMIC = "int8-dynamic"
FP8 = "fp8"
NVFP4 = "nvfp4"
"""Weights and activations as 4-bit floats in blocks of 16 with a scale each."""
INT16 = "int16"
"""Weights in 8 bits, activations in 16."""
WEIGHTS = ("int2-weights", "int3-weights", "int4-weights", "int8-weights", "nf4-weights")
"""Weights in few bits, activations in float."""
TABLE = "int8-weights"
"""Of a Gather: the rows that it looks up are kept in 8 bits."""
PRECISIONS = (FLOAT, INT8, INT8_DYNAMIC, INT16, FP8, NVFP4, *WEIGHTS)


@dataclass(frozen=True)
class LayerChoice:
    """The precision of one node.

    Attributes:
        origin: stable origin id of the node.
        op_type: its operator.
        precision: "float", "int8" (static), "int8-dynamic", "int16" (static, activations in 16
            bits), "fp8" (E4M3, static), "nvfp4" (E2M1 in blocks of 16).
        reason: why, one clause.
        sensitivity: output error energy caused by this layer alone, relative to the output's
            (a linear ratio: 0.01 means 20 dB), None when not measured.
        float_ns: measured latency of the float form in nanoseconds, None when not measured.
        int_ns: measured latency of the integer form in nanoseconds, None when not measured.
        pinned: chosen by the user, or for a reason that no measurement shows; no planner may change
            it.
    """

    origin: str
    op_type: str
    precision: str
    reason: str
    sensitivity: float | None = None
    float_ns: int | None = None
    int_ns: int | None = None
    pinned: bool = False


@dataclass(frozen=True)
class PrecisionPlan:
    """Choices in graph order."""

    layers: tuple[LayerChoice, ...]

    def __post_init__(self) -> None:
        """Refuse two choices for one node.

        Raises:
            OptionError: if an origin id stands twice.
        """
        seen: set[str] = set()
        for layer in self.layers:
            if layer.origin in seen:
                raise OptionError(f"the plan names node '{layer.origin}' twice; keep one entry")
            seen.add(layer.origin)

    def by_origin(self) -> dict[str, LayerChoice]:
        """Origin id -> choice."""
        return {layer.origin: layer for layer in self.layers}

    def precision(self, origin: str) -> str:
        """The precision of a node; "float" for nodes that the plan does not name."""
        choice = self.by_origin().get(origin)
        return FLOAT if choice is None else choice.precision

    def with_choice(self, origins: Iterable[str], precision: str, reason: str) -> PrecisionPlan:
        """A plan in which ``origins`` (not pinned ones) have another precision and reason."""
        chosen = set(origins)
        return PrecisionPlan(
            tuple(
                replace(layer, precision=precision, reason=reason)
                if layer.origin in chosen and not layer.pinned
                else layer
                for layer in self.layers
            )
        )

    def pin(
        self, selectors: Mapping[str, str], reason: str = "pinned by the user"
    ) -> PrecisionPlan:
        """A plan with the nodes that match each selector fixed to a precision.

        Args:
            selectors: origin id or shell pattern (``/head/*``) -> precision.
            reason: recorded on every pinned layer.

        Raises:
            OptionError: a selector matches nothing (with the nearest names), or an unknown precision.
        """
        layers = list(self.layers)
        names = [layer.origin for layer in layers]
        for selector, precision in selectors.items():
            if precision not in PRECISIONS:
                raise OptionError(
                    f"precision '{precision}' for '{selector}' is unknown; "
                    f"use one of {', '.join(PRECISIONS)}"
                )
            hits = [i for i, n in enumerate(names) if n == selector] or [
                i for i, n in enumerate(names) if fnmatch.fnmatchcase(n, selector)
            ]
            if not hits:
                near = difflib.get_close_matches(selector, names, n=3, cutoff=0.3)
                hint = f"; nearest: {', '.join(near)}" if near else ""
                raise OptionError(
                    f"selector '{selector}' matches no quantizable node of this model{hint}; "
                    "`qcompile inspect MODEL` lists them"
                )
            for i in hits:
                layers[i] = replace(layers[i], precision=precision, reason=reason, pinned=True)
        return PrecisionPlan(tuple(layers))

    def to_json(self) -> str:
        """Deterministic JSON text, one layer a line."""
        rows = ",\n".join("  " + json.dumps(asdict(layer), sort_keys=True) for layer in self.layers)
        return f'{{"version": {PLAN_VERSION}, "layers": [\n{rows}\n]}}\n'

    @classmethod
    def from_json(cls, text: str) -> PrecisionPlan:
        """Read what ``to_json`` wrote; numbers may be missing, unknown keys are an error.

        Raises:
            OptionError: not JSON, another version, or a layer without origin and precision.
        """
        try:
            data: Any = json.loads(text)
            if data["version"] != PLAN_VERSION:
                raise OptionError(
                    f"plan version {data['version']} cannot be read; this qcompile reads {PLAN_VERSION}"
                )
            layers = tuple(
                LayerChoice(**{"op_type": "", "reason": "given in the plan", **row})
                for row in data["layers"]
            )
            for layer in layers:
                if layer.precision not in PRECISIONS:
                    raise OptionError(
                        f"precision '{layer.precision}' of node '{layer.origin}' is unknown; "
                        f"use one of {', '.join(PRECISIONS)}"
                    )
        except (json.JSONDecodeError, KeyError, TypeError) as e:
            raise OptionError(
                f"the plan is not readable ({e}); needed: version and layers, each with origin and precision"
            ) from e
        return cls(layers)
