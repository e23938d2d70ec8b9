"""Which executed kernel does the work of which node of the model file.

Tags name some nodes of every kernel (its anchors). The rest was folded away or absorbed by a fusion;
for these the graph decides: a fusion into another operator is named after its *last* node and
absorbs what comes before (Erf, Div, ... Mul -> Gelu; Conv, Relu -> FusedConv), a kernel of the same
operator absorbs what comes behind it (QLinearConv takes the Clip, Conv takes the residual Add).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from qcompile.backends.ort_profile import Kernel
from qcompile.backends.ort_tags import Source, Tagged

__all__ = ["CONVERSIONS", "LAYOUT", "Owners", "find_owners"]

CONVERSIONS = frozenset({"DequantizeLinear", "DynamicQuantizeLinear", "QuantizeLinear"})
"""Operators between float and integer tensors."""

LAYOUT = frozenset({"Cast", "ReorderInput", "ReorderOutput", "Reshape", "Transpose", "Unsqueeze"})
"""Operators that ONNX Runtime inserts to rearrange a tensor for a kernel."""

_COMPUTE = ("Conv", "Gemm", "GRU", "LSTM", "MatMul", "QGemm", "QLinearConv", "QLinearMatMul", "RNN")
_FORMS = ("Nhwc", "QLinear", "DynamicQuantize", "Fused", "Q")


@dataclass(frozen=True)
class Owners:
    """Kernels and nodes of the file beside each other.

    Attributes:
        kernels: in order of execution.
        owner: index of a node -> index of the kernel that does its work.
        sources: for each kernel the nodes that it does, anchors first.
        layout: kernels that ONNX Runtime inserted to rearrange a tensor -> the tensor of the file
            that they rearrange, "" where that cannot be told.
        folded: nodes that compute constants, and so are gone before the first run.
        unowned: other nodes that no kernel was found for.
        unmapped: kernels that stand for no node of the file and are no layout.
    """

    kernels: tuple[Kernel, ...]
    owner: Mapping[int, int]
    sources: tuple[tuple[int, ...], ...]
    layout: Mapping[int, str]
    folded: frozenset[int]
    unowned: tuple[int, ...]
    unmapped: tuple[int, ...]


def find_owners(tagged: Tagged, kernels: Sequence[Kernel]) -> Owners:
    """Match executed kernels with the nodes of the model file."""
    sources = tagged.sources
    writes = {name: s.index for s in sources for name in s.outputs if name}
    folded = _folded(tagged)
    owner: dict[int, int] = {}
    layout: dict[int, str] = {}
    anchors: list[tuple[int, ...]] = []
    for index, kernel in enumerate(kernels):
        hits = tagged.found((*kernel.outputs, kernel.name))
        if _rearranges(kernel, [sources[h] for h in hits]):
            layout[index] = _rearranged(kernel, hits, tagged, kernels)
            anchors.append(())
            continue
        anchors.append(hits)
        for hit in hits:
            _claim(owner, hit, index, kernels, sources)
    readers = _readers(sources)
    _adopt(tagged, kernels, anchors, layout, owner, folded, readers)
    fused = {
        index
        for index, hits in enumerate(anchors)
        if hits and all(base(kernels[index].op_type) != base(sources[h].op_type) for h in hits)
    }
    # from the last node up: a chain in front of a fusion is absorbed link by link
    for source in reversed(sources):
        if source.index in owner or source.index in folded:
            continue
        below = _owners_of((r for n in source.outputs for r in readers.get(n, ())), owner)
        into = [k for k in below if k in fused]
        if into and (source.op_type.startswith(_COMPUTE) or len(below) == 1):
            owner[source.index] = into[0]
    for source in sources:
        if source.index in owner or source.index in folded:
            continue
        above = _owners_of((writes[n] for n in source.inputs if n in writes), owner)
        below = _owners_of((r for n in source.outputs for r in readers.get(n, ())), owner)
        if above and not source.op_type.startswith(_COMPUTE):
            owner[source.index] = max(above)
        elif below:
            owner[source.index] = below[0]
    done: list[list[int]] = [list(hits) for hits in anchors]
    for node, index in owner.items():
        if node not in done[index]:
            done[index].append(node)
    return Owners(
        kernels=tuple(kernels),
        owner=owner,
        sources=tuple(tuple(each) for each in done),
        layout=layout,
        folded=folded,
        unowned=tuple(s.index for s in sources if s.index not in owner and s.index not in folded),
        unmapped=tuple(i for i, each in enumerate(done) if not each and i not in layout),
    )


def base(op_type: str) -> str:
    """An operator without what its integer and fused forms add to its name.

    >>> base("QLinearConv"), base("NhwcFusedConv"), base("MatMulIntegerToFloat")
    ('Conv', 'Conv', 'MatMul')
    """
    for form in _FORMS:
        if op_type.startswith(form) and op_type != "QuantizeLinear":
            op_type = op_type[len(form) :]
    for ending in ("IntegerToFloat", "Integer", "NBits", "BnB4"):
        if op_type.endswith(ending):
            op_type = op_type[: -len(ending)]
    return op_type


def _folded(tagged: Tagged) -> frozenset[int]:
    """Nodes all of whose inputs are constants (Shape of a known shape is not seen as one)."""
    constant = set(tagged.constants)
    found = set()
    for source in tagged.sources:
        given = [name for name in source.inputs if name]
        if source.op_type == "Constant" or (given and all(name in constant for name in given)):
            found.add(source.index)
            constant.update(source.outputs)
    return frozenset(found)


def _rearranges(kernel: Kernel, sources: Sequence[Source]) -> bool:
    if kernel.op_type not in LAYOUT:
        return False
    return not any(s.op_type == kernel.op_type for s in sources)


def _rearranged(
    kernel: Kernel, hits: Sequence[int], tagged: Tagged, kernels: Sequence[Kernel]
) -> str:
    """The tensor of the file that a layout kernel writes in another order."""
    if hits:
        return next((name for name in tagged.sources[hits[0]].outputs if name), "")
    seen: set[str] = set()
    names = list(kernel.inputs[:1])
    while names and names[0] not in seen:
        seen.add(names[0])
        own = tagged.found(names)
        if own:
            return next((name for name in tagged.sources[own[0]].outputs if name), "")
        maker = next((k for k in kernels if names[0] in k.outputs), None)
        if maker is None:
            return names[0]
        made = tagged.found((maker.name,))
        if made:
            return next((name for name in tagged.sources[made[-1]].outputs if name), "")
        names = list(maker.inputs[:1])
    return ""


def _claim(
    owner: dict[int, int],
    node: int,
    index: int,
    kernels: Sequence[Kernel],
    sources: Sequence[Source],
) -> None:
    """A node named by two kernels belongs to the one of its own operator."""
    known = owner.get(node)
    wanted = base(sources[node].op_type)
    if known is None or (
        base(kernels[known].op_type) != wanted and base(kernels[index].op_type) == wanted
    ):
        owner[node] = index


def _adopt(
    tagged: Tagged,
    kernels: Sequence[Kernel],
    anchors: list[tuple[int, ...]],
    layout: Mapping[int, str],
    owner: dict[int, int],
    folded: frozenset[int],
    readers: Mapping[str, Sequence[int]],
) -> None:
    """Kernels without tags come from function bodies (HardSwish -> HardSigmoid, Mul).

    The first does the work of a node that reads the same tensor and has no kernel yet (or whose
    kernel reads what this one writes), the next ones go on with it. Adds to ``anchors`` and
    ``owner``.
    """
    adopted: dict[str, tuple[int, ...]] = {}
    takers: dict[str, list[int]] = {}
    for index, kernel in enumerate(kernels):
        for name in kernel.inputs:
            takers.setdefault(name, []).append(index)
    for index, kernel in enumerate(kernels):
        if anchors[index] or index in layout:
            continue
        read = [n for name in kernel.inputs for n in _names_of(name, tagged)]
        same = [r for n in read for r in readers.get(n, ()) if r not in folded]
        free = [r for r in same if r not in owner]
        behind = {a for name in kernel.outputs for t in takers.get(name, ()) for a in anchors[t]}
        shared = [r for r in same if r in behind]
        if shared:
            anchors[index] = (shared[0],)
        elif free:
            owner[free[0]] = index
            anchors[index] = (free[0],)
        else:
            before = next((adopted[name] for name in kernel.inputs if name in adopted), ())
            anchors[index] = before
        adopted.update(dict.fromkeys(kernel.outputs, anchors[index]))


def _names_of(name: str, tagged: Tagged) -> list[str]:
    """The file's names of a tensor of ONNX Runtime's graph."""
    own = tagged.found((name,))
    return [n for i in own for n in tagged.sources[i].outputs if n] or [name]


def _readers(sources: Sequence[Source]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for source in sources:
        for name in source.inputs:
            if name:
                found.setdefault(name, []).append(source.index)
    return found


def _owners_of(nodes: Iterable[int], owner: Mapping[int, int]) -> list[int]:
    return list(dict.fromkeys(owner[n] for n in nodes if n in owner))
