"""From the user's model to the prepared float graph: loaded, upgraded where needed, folded and fused."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx_ir as oir

from qcompile.backends import ort
from qcompile.data.inputs import InputSpec, input_specs
from qcompile.ir.errors import ModelError, TargetError
from qcompile.ir.given import NOTHING_GIVEN, Given
from qcompile.ir.graph import default_opset, drop_unused, origin
from qcompile.ir.load import Loaded, load_model
from qcompile.ir.manager import CompileState, PassManager, PassRecord
from qcompile.ir.notes import Note
from qcompile.ir.on_disk import large_on_disk
from qcompile.ir.target import Target
from qcompile.ir.upgrade import upgrade_opset
from qcompile.memory import room_for
from qcompile.oldest_runtime import limits_of, parse_release
from qcompile.options import Options
from qcompile.passes.fold_constants import FoldConstants
from qcompile.passes.keep_weights import KeepWeights
from qcompile.passes.lift_pairs import LiftPairs
from qcompile.passes.lift_weights import LiftWeights
from qcompile.passes.prepare import prepare_passes
from qcompile.passes.quantizable import Site, classify
from qcompile.passes.recover_grid import RecoverGrid
from qcompile.passes.spell_fused import SpellFused
from qcompile.passes.widen_half import WidenHalf
from qcompile.selected import NONE_SELECTED, Selected, expose, find_selected

__all__ = ["Prepared", "prepare"]

FUSED_OPSET = 17
"""Opset that the canonical forms need (LayerNormalization); reached where every node can follow."""


@dataclass(frozen=True)
class Prepared:
    """A float model that calibration, planning and lowering work on.

    Attributes:
        loaded: the user's model as it was read.
        model: the prepared graph.
        inputs: what a caller must feed.
        target: the capability table.
        sites: nodes that the target has a word on.
        records: log of the PREPARE passes.
        notes: what loading and upgrading did or left alone.
        given: scales that the model brought along.
        factors: tensor -> k of the factors 2^k that its channels were divided by (see ``even_out``).
        selected: outputs behind a selection; what it reads are outputs of ``model``.
    """

    loaded: Loaded
    model: oir.Model
    inputs: tuple[InputSpec, ...]
    target: Target
    sites: tuple[Site, ...]
    records: tuple[PassRecord, ...]
    notes: tuple[Note, ...]
    given: Given = NOTHING_GIVEN
    factors: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    selected: Selected = NONE_SELECTED


COLLECTED = 20_000
"""Objects made between two searches for garbage: a graph is a hundred thousand that stay, and searching
them every 700 took a third of the time of reading and preparing a language model."""


@contextmanager
def _seldom_collected() -> Iterator[None]:
    before = gc.get_threshold()
    if before[0]:  # else whoever runs this has switched it off
        gc.set_threshold(max(COLLECTED, before[0]), *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)


@_seldom_collected()
def prepare(source: Any, target: Target, options: Options, work: Path | None = None) -> Prepared:
    """Load and prepare a model for a target.

    Args:
        source: path, bytes or proto.
        target: the capability table.
        options: what was asked.
        work: a folder that lives as long as the result: weights that passes make of a model that does
            not fit in memory lie there.

    Raises:
        ModelError: the model cannot be read, is newer than the runtime, or laid out for one CPU.
        TargetError: the options pin an opset that the target's form cannot have.
    """
    opset_limit, ir_limit = _limits(options)
    loaded = load_model(
        source,
        fix_weights=options.fix_weights,
        runtime_opset_limit=opset_limit,
        runtime_ir_limit=ir_limit,
    )
    _check_layouts(loaded)
    model = loaded.model.clone()
    inputs = input_specs(model)
    model, notes = _upgraded(model, target, options)
    state = CompileState(model, target)
    contrib = target.backend == "ort" and not target.portable
    passes = prepare_passes(
        contrib, engines=target.backend == "trt", few_bits=target.weights is not None
    )
    if contrib and target.ops and target.weights is None:
        passes = [WidenHalf(), *passes]
    selected = NONE_SELECTED
    if _has_pairs(model):
        passes = [
            FoldConstants(),
            LiftWeights(),
            *passes,
            LiftPairs(),
            KeepWeights(),
            RecoverGrid(),
        ]
    elif contrib and target.weights is None:
        selected = find_selected(model)
        expose(model, selected.before)
    passes = [SpellFused(), *passes]
    manager = PassManager(passes, frozenset(options.disable))
    fits = room_for(loaded.model, options.memory_limit).fits
    with large_on_disk(None if work is None or fits else work / "prepared"):
        manager.run(state)
        drop_unused(state.model)  # constants that folds left behind
    notes += state.notes
    return Prepared(
        loaded,
        state.model,
        inputs,
        target,
        tuple(classify(state)),
        tuple(manager.records),
        (*loaded.notes, *notes),
        Given(state.qparams, state.weights),
        selected=selected,
    )


def _check_layouts(loaded: Loaded) -> None:
    """Refuse what ONNX Runtime saved after it had laid tensors out in blocks for one CPU."""
    blocked = [n for n in loaded.model.graph.all_nodes() if n.domain == "com.microsoft.nchwc"]
    if blocked:
        raise ModelError(
            f"'{origin(blocked[0])}' is one of {len(blocked)} operators of com.microsoft.nchwc: "
            "ONNX Runtime saved this model in a layout for one CPU (optimization level 'all'); "
            "needed: the model before that, or saved with level 'extended' or 'basic'"
        )


def _has_pairs(model: oir.Model) -> bool:
    """Whether the model comes quantized in Q/DQ form, as quantization-aware training leaves it."""
    return any(n.op_type == "DequantizeLinear" and n.domain == "" for n in model.graph)


def _limits(options: Options) -> tuple[int, int]:
    """The newest opset and IR version that both the installed runtime and --min-ort's open."""
    opset, ir_version = ort.max_opset(), ort.max_ir_version()
    if options.min_ort is None:
        return opset, ir_version
    oldest = limits_of(parse_release(options.min_ort))
    return min(opset, oldest[0]), min(ir_version, oldest[1])


def _upgraded(model: oir.Model, target: Target, options: Options) -> tuple[oir.Model, list[Note]]:
    """The model at the pinned opset, else at the one that the fused forms need, as far as it goes."""
    have = default_opset(model)
    needed = target.per_channel_opset
    newest, _ = _limits(options)
    if options.opset is not None:
        if options.opset < have or options.opset > newest:
            reader = "the installed ONNX Runtime" if options.min_ort is None else "--min-ort's"
            raise TargetError(
                f"--opset {options.opset} cannot be had: the model has opset {have} and {reader} "
                f"reads up to {newest}; models are upgraded only"
            )
        if options.opset < needed:
            raise TargetError(
                f"--opset {options.opset}: {target.name} needs at least {needed} "
                "(weights with a scale per channel or block)"
            )
        wanted = options.opset
    else:
        wanted = max(have, min(max(FUSED_OPSET, target.opset), newest))
    if wanted <= have:
        return model, []
    upgraded, notes = upgrade_opset(model, wanted)
    return upgraded, list(notes)
