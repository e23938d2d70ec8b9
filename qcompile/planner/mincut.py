"""Exact minimum s-t cuts with int64 capacities.

scipy's Dinic is fast (5,000 vertices in milliseconds) but holds capacities as int32 and wraps
silently beyond. Larger ones are solved exactly in rounds: push the maximum flow of the capacities
shifted right by k bits, take it (shifted back) off the residual, and repeat with a smaller k. After
a round some cut has only arcs with less than 2**k left, so at most ``arcs * 2**k`` more can flow:
arcs may be clamped there, and each round wins about 30 - log2(arcs) bits (Gabow 1985, "Scaling
algorithms for network problems", in the form of Ahuja and Orlin 1991).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from scipy import sparse

__all__ = ["LIMIT", "Cut", "minimum_cut"]

Ints = npt.NDArray[np.int64]

LIMIT = 1 << 62
"""All capacities together must stay below it, so that no sum of them leaves int64."""

_ROUND_BITS = 30
"""Bits of the capacities handed to scipy: an arc and its reverse together then stay in int32."""


@dataclass(frozen=True)
class Cut:
    """A minimum cut.

    Attributes:
        value: sum of the capacities from the source side to the sink side.
        source_side: for each vertex, whether it is reachable from the source in the residual:
            the smallest source side of all minimum cuts, so ties fall to the sink.
    """

    value: int
    source_side: npt.NDArray[np.bool_]


def minimum_cut(
    vertices: int, tail: Ints, head: Ints, capacity: Ints, *, source: int, sink: int
) -> Cut:
    """The minimum cut between two vertices, exact for any int64 capacities below ``LIMIT``.

    Args:
        vertices: how many vertices there are, numbered from 0.
        tail: start of each arc.
        head: end of each arc; parallel arcs add up.
        capacity: of each arc, not negative. For "infinite" give the sum of the others plus 1.
        source: a vertex.
        sink: another vertex.

    Raises:
        ValueError: capacities are negative or their sum reaches ``LIMIT``.

    Example:
        >>> cut = minimum_cut(3, *np.array([[0, 1], [1, 2], [5, 3]]), source=0, sink=2)
        >>> cut.value, cut.source_side.tolist()
        (3, [True, True, False])
    """
    if capacity.size and int(capacity.min()) < 0:
        raise ValueError("capacities must not be negative")
    # float64 bounds the sum without overflow; the exact sum only matters well below the limit.
    if float(capacity.astype(np.float64).sum()) >= LIMIT:
        raise ValueError(f"capacities add up to 2**62 or more; scale them down ({capacity.max()=})")
    from scipy import sparse  # a third of a second, which most commands need not pay
    from scipy.sparse import csgraph

    inside = tail != head
    shape = (vertices, vertices)
    # scipy's flow takes int32 indices only; vertices are thousands.
    ends = (tail[inside].astype(np.int32), head[inside].astype(np.int32))
    arcs = sparse.csr_array((capacity[inside].astype(np.int64), ends), shape=shape)
    arcs.sum_duplicates()
    residual = _saturate(arcs, source, sink).copy()
    residual.eliminate_zeros()
    source_side = np.zeros(vertices, dtype=np.bool_)
    source_side[csgraph.breadth_first_order(residual, source, return_predecessors=False)] = True
    crossing = source_side[tail] & ~source_side[head]
    return Cut(int(capacity[crossing].sum()), source_side)


def _saturate(arcs: sparse.csr_array, source: int, sink: int) -> sparse.csr_array:
    """The residual capacities of a maximum flow."""
    from scipy import sparse
    from scipy.sparse import csgraph

    residual: sparse.csr_array = arcs
    out_of_source = int(residual[[source], :].sum())
    into_sink = int(residual[:, [sink]].sum())
    bound = min(out_of_source, into_sink)
    while bound > 0:
        shift = max(0, bound.bit_length() - _ROUND_BITS)
        capped = (np.minimum(residual.data, bound) >> shift).astype(np.int32)
        scaled = sparse.csr_array(
            (capped, residual.indices, residual.indptr), shape=residual.shape, copy=True
        )
        scaled.eliminate_zeros()
        flow = csgraph.maximum_flow(scaled, source, sink).flow.astype(np.int64)
        flow.data <<= shift
        # The flow is antisymmetric, so this also opens the reverse arcs.
        left: sparse.csr_array = sparse.csr_array(residual - flow)
        residual = left
        if shift == 0:
            break
        # What is left of the saturated cut: fewer than 2**shift on each of at most nnz arcs.
        bound = residual.nnz << shift
    return residual
