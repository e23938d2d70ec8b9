"""Realised precision: what ONNX Runtime executes for each layer of a model, not what was asked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from qcompile.backends.ort import Feed
from qcompile.backends.ort_macs import node_macs
from qcompile.backends.ort_owners import CONVERSIONS, Owners, find_owners
from qcompile.backends.ort_profile import Kernel, profile_model
from qcompile.backends.ort_tags import Tagged, tag_model
from qcompile.ir.plan import FLOAT, INT8, INT8_DYNAMIC

__all__ = ["Executed", "Realisation", "Realised", "describe", "kernel_precisions", "realised"]

_INTEGER = ("ConvInteger", "MatMulInteger", "QAttention", "QGemm", "QLinear", "QOrdered", "QMoE")
_DYNAMIC = ("DynamicQuantizeLSTM", "DynamicQuantizeMatMul", "MatMulNBits")
_EIGHT_BIT = frozenset({"int8", "uint8"})


@dataclass(frozen=True)
class Realised:
    """How one layer is executed.

    Attributes:
        precision: "int8", "int8-dynamic" (integer weights, float edges) or "float".
        op_types: the kernels that do its work, in order of execution.
    """

    precision: str
    op_types: tuple[str, ...]


@dataclass(frozen=True)
class Executed:
    """One executed kernel and the layers whose work it does.

    Attributes:
        name: of the node in ONNX Runtime's own graph, after the tags were taken out.
        op_type: what is executed.
        precision: as in `Realised`, "conversion" (Q, DQ) or "layout".
        origins: layers; empty when it stands for none.
    """

    name: str
    op_type: str
    precision: str
    origins: tuple[str, ...]


@dataclass(frozen=True)
class Realisation:
    """What a model becomes in ONNX Runtime.

    Attributes:
        layers: origin id -> how it is executed. Layers that were folded into constants are missing.
        kernels: everything that is executed, in order.
        unmapped: kernels that stand for no layer of the model.
        vanished: layers for which no kernel was found.
        mac_share: share of the multiply-accumulates of Conv, MatMul, Gemm and recurrent nodes that
            integer kernels do, None for a model without any.
    """

    layers: Mapping[str, Realised]
    kernels: tuple[Executed, ...]
    unmapped: tuple[Executed, ...]
    vanished: tuple[str, ...]
    mac_share: float | None

    def share(self, macs: Mapping[str, int]) -> float | None:
        """Share of MACs that integer kernels do, by origin id; None without any MACs."""
        total = sum(macs.values())
        integer = sum(
            count
            for origin, count in macs.items()
            if origin in self.layers and self.layers[origin].precision != FLOAT
        )
        return integer / total if total else None


def realised(
    path: Path,
    feed: Feed | Sequence[Feed],
    *,
    custom_ops: Path | None = None,
    folder: Path | None = None,
) -> Realisation:
    """Find out what ONNX Runtime executes for a model.

    The model is opened under tagged names with a profile, run on ``feed``, and every executed
    kernel is traced back to the nodes of the file and their origin ids (without such metadata: the
    nodes' names).

    Args:
        path: any ONNX model that the runtime opens.
        feed: one feed, or several where branches depend on the input.
        custom_ops: library with custom operators.
        folder: for files of the size of the model, gone at the end; None: the system's.

    Raises:
        ModelError: ONNX Runtime refuses the model or the feed.
    """
    feeds = [feed] if isinstance(feed, Mapping) else list(feed)
    tagged = tag_model(Path(path))
    kernels = profile_model(tagged, feeds, custom_ops=custom_ops, folder=folder)
    return describe(tagged, find_owners(tagged, kernels))


def describe(tagged: Tagged, owners: Owners) -> Realisation:
    """The realisation that owners found out."""
    precisions = kernel_precisions(owners.kernels)
    executed = []
    done: dict[str, dict[int, None]] = {}
    for index, kernel in enumerate(owners.kernels):
        nodes = [tagged.sources[i] for i in owners.sources[index]]
        executed.append(
            Executed(
                name=" ".join(node.name for node in nodes) or kernel.name,
                op_type=kernel.op_type,
                precision="layout" if index in owners.layout else precisions[index],
                origins=tuple(dict.fromkeys(o for node in nodes for o in node.origins)),
            )
        )
        for node in nodes:
            if node.op_type not in CONVERSIONS:
                for origin in node.origins:
                    done.setdefault(origin, {})[index] = None
    gone = dict.fromkeys(
        origin
        for index in owners.unowned
        for origin in tagged.sources[index].origins
        if origin not in done and tagged.sources[index].op_type not in CONVERSIONS
    )
    counts = node_macs(tagged, owners)
    total = sum(counts.values())
    integer = sum(n for i, n in counts.items() if precisions[owners.owner[i]] != FLOAT)
    return Realisation(
        layers={
            origin: Realised(
                precision=_together([precisions[i] for i in at]),
                op_types=tuple(owners.kernels[i].op_type for i in at),
            )
            for origin, at in done.items()
        },
        kernels=tuple(executed),
        unmapped=tuple(executed[i] for i in owners.unmapped),
        vanished=tuple(gone),
        mac_share=integer / total if total else None,
    )


def _together(precisions: Sequence[str]) -> str:
    return next((p for p in (INT8_DYNAMIC, INT8) if p in precisions), FLOAT)


def kernel_precisions(kernels: Sequence[Kernel]) -> list[str]:
    """The precision in which each kernel computes; "conversion" for Q and DQ.

    Kernels that move or compare values (MaxPool, Transpose, Resize) have no integer name: they
    count as integer when the first tensor they read is. Integers that were made at run time
    (DynamicQuantizeLinear) make "int8-dynamic".
    """
    found: list[str] = []
    dynamic: set[str] = set()
    for kernel in kernels:
        precision = _precision(kernel)
        from_dynamic = bool(kernel.inputs) and kernel.inputs[0] in dynamic
        if kernel.op_type == "DynamicQuantizeLinear":
            dynamic.update(kernel.outputs[:1])
        elif precision == INT8 and from_dynamic:
            precision = INT8_DYNAMIC
            if kernel.written and kernel.written[0].dtype in _EIGHT_BIT:
                dynamic.update(kernel.outputs[:1])
        found.append(precision)
    return found


def _precision(kernel: Kernel) -> str:
    if kernel.op_type.startswith(_DYNAMIC):
        return INT8_DYNAMIC
    if kernel.op_type in CONVERSIONS:
        return "conversion"
    if kernel.op_type.startswith(_INTEGER):
        return INT8
    if kernel.op_type != "Cast" and kernel.read and kernel.read[0].dtype in _EIGHT_BIT:
        return INT8
    return FLOAT
