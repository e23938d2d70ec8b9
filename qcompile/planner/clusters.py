"""Sensitivities when there is no time to measure each unit: clusters, the worst split first.

All units of one operator are measured together; the cluster with the largest error is halved and
both halves are measured, until time is up. Errors add roughly, so what a cluster that was never
split causes is shared equally among its members: they matter little, or it would have been split.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from qcompile.ir.plan import INT8, INT8_DYNAMIC
from qcompile.planner.gated import Gate
from qcompile.planner.gated_session import GatedSession

__all__ = ["Share", "measure_clusters"]


@dataclass(frozen=True)
class Share:
    """Part of a cluster's error that falls to each member.

    Attributes:
        static: in int8, None when no member has that form.
        dynamic: in int8-dynamic, None when no member has that form.
        alone: the cluster is this unit alone, so nothing is shared.
    """

    static: float | None
    dynamic: float | None
    alone: bool


def measure_clusters(
    session: GatedSession,
    gates: Sequence[Gate],
    late: Callable[[], bool],
    progress: Callable[[int], None],
) -> dict[str, Share]:
    """The share of every unit, on the first sample.

    Args:
        session: the gated session.
        gates: units to measure, those first that matter first.
        late: whether time is up; one measurement of each operator is made whatever it says.
        progress: called with how many units are measured alone or need no splitting any more.
    """
    kinds: dict[tuple[str, str], list[Gate]] = {}
    for gate in gates:
        kinds.setdefault((gate.unit.site.role, gate.unit.site.op_type), []).append(gate)
    found: dict[str, Share] = {}
    heap: list[tuple[float, int, list[Gate]]] = []
    count = alone = 0

    def look(cluster: list[Gate]) -> None:
        nonlocal count, alone
        share, error = _measure(session, cluster)
        found.update((gate.unit.origin, share) for gate in cluster)
        count += 1
        if share.alone:
            alone += 1
            progress(alone)
        else:
            heapq.heappush(heap, (-error, count, cluster))

    for cluster in kinds.values():
        look(cluster)
    while heap:
        _, _, cluster = heapq.heappop(heap)
        for half in (cluster[: len(cluster) // 2], cluster[len(cluster) // 2 :]):
            if late():
                return found
            look(half)
    return found


def _measure(session: GatedSession, cluster: Sequence[Gate]) -> tuple[Share, float]:
    """The members' share, and the larger of the cluster's errors."""
    static = [gate.unit.origin for gate in cluster if gate.static]
    dynamic = [gate.unit.origin for gate in cluster if gate.dynamic is not None]
    # What readers round is counted with them; movers round for their readers (see sensitivity).
    writes = {gate.unit.origin: gate.unit.site.role == "passthrough" for gate in cluster}
    errors = (
        session.sample_error(dict.fromkeys(static, INT8), 0, writes) if static else None,
        session.sample_error(dict.fromkeys(dynamic, INT8_DYNAMIC), 0) if dynamic else None,
    )
    share = Share(
        None if errors[0] is None else errors[0] / len(static),
        None if errors[1] is None else errors[1] / len(dynamic),
        len(cluster) == 1,
    )
    return share, max(error or 0.0 for error in errors)
