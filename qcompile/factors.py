"""Factors per channel that an earlier decision chose: applied to a prepared model, where they fit it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from qcompile.ir.manager import CompileState, PassManager
from qcompile.ir.notes import Note
from qcompile.passes.fold_scales import FoldScales, why_unfit
from qcompile.passes.quantizable import classify
from qcompile.passes.scale_branches import find_all
from qcompile.prepare import Prepared

__all__ = ["Exponents", "fitting_factors", "with_factors"]

Exponents = Mapping[str, tuple[int, ...]]
"""Tensor -> for each of its channels k of the factor 2^k."""


def with_factors(prepared: Prepared, exponents: Exponents) -> Prepared:
    """The model with its channels divided by 2^exponents.

    Args:
        prepared: a model whose channels are not scaled.
        exponents: all of the factors.

    Raises:
        PassError: a tensor's channels cannot be scaled so.
    """
    state = CompileState(prepared.model.clone(), prepared.target)
    PassManager((FoldScales(exponents),)).run(state)
    sites = tuple(classify(state))
    return replace(prepared, model=state.model, sites=sites, factors=exponents)


def fitting_factors(
    prepared: Prepared, exponents: Exponents
) -> tuple[dict[str, tuple[int, ...]], list[Note]]:
    """Those of another checkpoint's factors that change nothing in this one, and why others do not fit.

    A Clip is passed by channels that it provably never cuts off: which those are depends on the
    weights.
    """
    known = {region.name: region for region in find_all(prepared.model.graph)[0]}
    kept: dict[str, tuple[int, ...]] = {}
    notes = []
    for name, each in exponents.items():
        reason = why_unfit(known.get(name), each)
        if reason is None:
            kept[name] = each
        else:
            notes.append(Note(name, f"factors not carried over: {reason}"))
    return kept, notes
