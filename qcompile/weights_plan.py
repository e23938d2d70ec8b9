"""Which matrices become integers in weight-only targets, with how many bits, and why not the rest."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from qcompile.calibrators.exact_grid import lies_on_grid
from qcompile.ir.blocks import BlockSpec
from qcompile.ir.errors import OptionError
from qcompile.ir.graph import is_graph_output, single_consumer
from qcompile.ir.matrices import Matrix
from qcompile.ir.plan import FLOAT, LayerChoice, PrecisionPlan
from qcompile.ir.target import WeightForm
from qcompile.options import Options

__all__ = [
    "MatrixChoice",
    "as_plan",
    "choose_matrices",
    "follow_plan",
    "raise_bits",
    "raise_dear",
    "raised_share",
    "with_bits",
]

SMALLEST = 4096
"""Elements below which a matrix stays float: it is read from the cache anyway."""

KEPT_BLOCKS = (32, 64, 128)
"""Blocks that a checkpoint's grid may be kept in: sixteen and 256 are slow."""

SAMPLED = 16
"""Rows of a matrix that tell whether it comes from a checkpoint in few bits."""

DEAR = 2.0
"""Times what the mean byte of few bits disturbs: from there on 8 bits are the best use of a byte. Blocks of
32 instead of 64 take 28 % of the disturbance for 0.56 bits an element, 8 bits all of it for 4."""

MOST_RAISED = 0.5
"""Of the elements in few bits: with more in 8 bits the target with 8 bits is the better choice."""


@dataclass(frozen=True)
class MatrixChoice:
    """What a matrix is to become.

    Attributes:
        matrix: of the prepared model.
        spec: the grid; None: it stays float.
        codebook: indices into the NF4 table, in blocks of ``spec.block``.
        reason: one clause.
        pinned: chosen by the user.
        on_grid: rows of it lie on this grid already, as a checkpoint in few bits leaves them.
    """

    matrix: Matrix
    spec: BlockSpec | None
    codebook: bool
    reason: str
    pinned: bool = False
    on_grid: bool = False

    @property
    def precision(self) -> str:
        """As the plan names it."""
        if self.spec is None:
            return FLOAT
        return "nf4-weights" if self.codebook else f"int{self.spec.bits}-weights"

    @property
    def may_rise(self) -> bool:
        """It has few bits, and not because the user said so."""
        return self.spec is not None and self.spec.bits < 8 and not self.pinned


def choose_matrices(
    matrices: Sequence[Matrix], form: WeightForm, options: Options
) -> list[MatrixChoice]:
    """The first choice, before anything is measured.

    Raises:
        OptionError: the bits or the block asked for have no kernel.
    """
    bits, block = options.bits or form.bits, options.block or form.block
    BlockSpec(bits, block)
    if block not in form.blocks:
        raise OptionError(
            f"--block {block}: no fast kernel for this target; use {', '.join(map(str, form.blocks))}"
        )
    return [_choose(matrix, form, bits, block, free=options.block is None) for matrix in matrices]


def _choose(matrix: Matrix, form: WeightForm, bits: int, block: int, *, free: bool) -> MatrixChoice:
    out, width = matrix.shape
    if matrix.size < SMALLEST or width < 16:
        return MatrixChoice(matrix, None, False, f"{out} x {width} is too small to gain anything")
    edge = matrix.looked_up or any(_writes_output(matrix, i) for i in range(len(matrix.uses)))
    codebook = form.codebook and not edge and width % block == 0
    chosen, reason = bits, f"weights of {out} x {width}"
    kept = None
    if edge:
        chosen = max(bits, form.edge_bits)
        reason = "embedding or output head: errors there are not averaged by later layers"
    elif not codebook:
        kept = _stored_block(matrix, bits, form.blocks if free else (block,))
        block = kept or block
    if matrix.looked_up:
        while width % block and block > 16:
            block //= 2
        if width % block:
            return MatrixChoice(
                matrix, None, False, f"rows of {width} elements are no whole number of blocks"
            )
    if kept:
        reason += ", which lie on such a grid already"
    return MatrixChoice(
        matrix, BlockSpec(chosen, block), codebook, reason, on_grid=kept is not None
    )


def _stored_block(matrix: Matrix, bits: int, blocks: Sequence[int]) -> int | None:
    """The largest block in which a checkpoint's grid can be kept, None where there is no such grid."""
    rows = matrix.some_rows(SAMPLED)
    if bits == 8 or not rows.any():
        return None
    fast = (b for b in sorted(blocks, reverse=True) if len(blocks) == 1 or b in KEPT_BLOCKS)
    return next((b for b in fast if lies_on_grid(rows, BlockSpec(bits, b))), None)


def _writes_output(matrix: Matrix, index: int) -> bool:
    use = matrix.uses[index]
    if use.op_type == "Gather":
        return False
    value = use.node.outputs[0]
    after = single_consumer(value)
    return is_graph_output(value) or (
        after is not None and after.op_type == "Add" and is_graph_output(after.outputs[0])
    )


def with_bits(choice: MatrixChoice, bits: int, reason: str) -> MatrixChoice:
    """The choice on another grid; a pinned one stays."""
    if choice.spec is None or choice.pinned:
        return choice
    return replace(
        choice, spec=replace(choice.spec, bits=bits), codebook=False, reason=reason, on_grid=False
    )


def raise_bits(
    choices: Sequence[MatrixChoice], disturbance: Mapping[str, float], keep: float
) -> list[MatrixChoice]:
    """8 bits for the matrices that disturb the output most for their size.

    Args:
        choices: first choice.
        disturbance: initializer name -> what it alone does to the output in few bits.
        keep: share of the sum of all disturbances that may stay; never do more than ``MOST_RAISED``
            of the elements get 8 bits.
    """
    few = [c for c in choices if c.may_rise]
    room = MOST_RAISED * sum(c.matrix.size for c in few)
    total = left = sum(disturbance.get(c.matrix.name, 0.0) for c in few)
    raised: set[str] = set()
    for choice in sorted(
        few, key=lambda c: -disturbance.get(c.matrix.name, 0.0) / max(1, c.matrix.size)
    ):
        if left <= keep * total:
            break
        if choice.matrix.size <= room:
            room -= choice.matrix.size
            left -= disturbance.get(choice.matrix.name, 0.0)
            raised.add(choice.matrix.name)
    return _raised(choices, disturbance, total, raised)


def raise_dear(
    choices: Sequence[MatrixChoice], disturbance: Mapping[str, float]
) -> list[MatrixChoice]:
    """8 bits for the matrices where a byte buys more than it does in smaller blocks everywhere."""
    few = [c for c in choices if c.may_rise and not c.on_grid]
    total = sum(disturbance.get(c.matrix.name, 0.0) for c in few)
    size = sum(c.matrix.size for c in few)
    dear = {
        c.matrix.name
        for c in few
        if disturbance.get(c.matrix.name, 0.0) * size > DEAR * total * c.matrix.size
    }
    return _raised(choices, disturbance, total, dear)


def _raised(
    choices: Sequence[MatrixChoice],
    disturbance: Mapping[str, float],
    total: float,
    names: Collection[str],
) -> list[MatrixChoice]:
    return [
        with_bits(c, 8, f"{_share(disturbance, c, total)} of what few bits do to the output")
        if c.matrix.name in names
        else c
        for c in choices
    ]


def _share(disturbance: Mapping[str, float], choice: MatrixChoice, total: float) -> str:
    return f"{disturbance.get(choice.matrix.name, 0.0) / max(total, 1e-300):.1%}"


def raised_share(before: Sequence[MatrixChoice], after: Sequence[MatrixChoice]) -> float:
    """Share of the elements in few bits that ``after`` has in 8."""
    few = [c for c in before if c.spec is not None and c.spec.bits < 8]
    grown = {c.matrix.name for c in after if c.spec is not None and c.spec.bits == 8}
    total = sum(c.matrix.size for c in few)
    return sum(c.matrix.size for c in few if c.matrix.name in grown) / max(1, total)


def as_plan(choices: Sequence[MatrixChoice]) -> PrecisionPlan:
    """One layer for each node that reads a matrix."""
    rows = [
        LayerChoice(name, use.op_type, choice.precision, choice.reason, pinned=choice.pinned)
        for choice in choices
        for name, use in zip(choice.matrix.origins, choice.matrix.uses, strict=True)
    ]
    return PrecisionPlan(tuple({row.origin: row for row in rows}.values()))


def follow_plan(
    choices: Sequence[MatrixChoice], options: Options, locked: PrecisionPlan | None
) -> list[MatrixChoice]:
    """Choices with what the user, a given plan or the lock fixed.

    Raises:
        OptionError: a selector matches nothing, or the plan gives one matrix two precisions.
    """
    plan = as_plan(choices)
    wanted: dict[str, str] = {}
    if locked is not None:
        wanted = {layer.origin: layer.precision for layer in locked.layers}
    elif options.plan is not None:
        given = options.plan
        if isinstance(given, (str, Path)):
            try:
                given = PrecisionPlan.from_json(Path(given).read_text(encoding="utf-8"))
            except OSError as e:
                raise OptionError(f"--plan '{options.plan}' cannot be read: {e.strerror}") from e
        wanted = {layer.origin: layer.precision for layer in given.layers}
    pinned = plan.pin(wanted, "given in the plan")
    pinned = pinned.pin(dict.fromkeys(options.keep_float, FLOAT), "kept float by the user")
    return [_pinned(choice, pinned.by_origin()) for choice in choices]


def _pinned(choice: MatrixChoice, layers: Mapping[str, LayerChoice]) -> MatrixChoice:
    named = {layers[o].precision: layers[o] for o in choice.matrix.origins if layers[o].pinned}
    if not named:
        return choice
    if len(named) > 1:
        raise OptionError(
            f"'{choice.matrix.name}' is one weight of {len(choice.matrix.uses)} nodes, which are "
            f"given {' and '.join(sorted(named))}; give them one precision"
        )
    precision, layer = next(iter(named.items()))
    if precision == FLOAT:
        return replace(choice, spec=None, reason=layer.reason, pinned=True)
    if choice.spec is None or precision == choice.precision:
        return replace(choice, pinned=True)
    if precision not in ("int2-weights", "int3-weights", "int4-weights", "int8-weights"):
        raise OptionError(
            f"'{layer.origin}' is given {precision}, which this target does not have; use float, "
            "int2-weights, int3-weights, int4-weights or int8-weights"
        )
    return replace(with_bits(choice, int(precision[3]), layer.reason), pinned=True)
