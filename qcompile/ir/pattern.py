"""Patterns of nodes: match -> check -> replace, with a reason for each refusal.

A pattern is a term: ``op("Div", op("Mul", x, op("Clip", ...)), const(6.0))`` reads like the
expression it finds. Terms match upwards from an output to its inputs; inputs of Add and Mul match
in both orders; a variable that occurs twice must bind the same tensor.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import onnx_ir as oir

from qcompile.ir.graph import attribute, constant, is_graph_output, origin, set_origin
from qcompile.ir.manager import CompileState, Note, PassResult

__all__ = [
    "Alt",
    "Match",
    "Op",
    "Rule",
    "Term",
    "absorb",
    "alt",
    "apply_rules",
    "const",
    "escape",
    "match",
    "op",
    "replace",
    "stand_for",
    "var",
]

COMMUTATIVE = frozenset({"Add", "Mul", "Max", "Min"})


@dataclass(frozen=True)
class Var:
    """Any tensor; the same name binds the same tensor."""

    name: str


@dataclass(frozen=True)
class Const:
    """A constant tensor, optionally with every element equal to ``value`` (relative tolerance)."""

    name: str
    value: float | None
    rtol: float = 1e-5


@dataclass(frozen=True)
class Op:
    """A node of one of ``op_types`` whose inputs match ``inputs`` (missing trailing inputs allowed)."""

    op_types: tuple[str, ...]
    inputs: tuple[Term, ...]
    attributes: Mapping[str, object] = field(default_factory=dict)
    name: str = ""


@dataclass(frozen=True)
class Alt:
    """Any one of ``terms``, tried in order."""

    terms: tuple[Term, ...]


Term = Var | Const | Op | Alt


def var(name: str) -> Var:
    """A variable."""
    return Var(name)


def const(value: float | None = None, name: str = "") -> Const:
    """A constant, filled with ``value`` if given; bound under ``name`` if given."""
    return Const(name, value)


def op(op_types: str, *inputs: Term, name: str = "", **attributes: object) -> Op:
    """A node; ``op_types`` may list alternatives ("Conv|ConvTranspose")."""
    return Op(tuple(op_types.split("|")), inputs, attributes, name)


def alt(*terms: Term) -> Alt:
    """Alternatives inside a pattern."""
    return Alt(terms)


@dataclass(frozen=True)
class Match:
    """What a pattern found.

    Attributes:
        values: variable and constant names -> tensors.
        nodes: every matched node, the root first.
        named: nodes of terms that carry a name.
    """

    values: Mapping[str, oir.Value]
    nodes: tuple[oir.Node, ...]
    named: Mapping[str, oir.Node] = field(default_factory=dict)

    @property
    def root(self) -> oir.Node:
        """The node whose output is the expression's value."""
        return self.nodes[0]

    def array(self, name: str) -> npt.NDArray[np.generic]:
        """The array of a constant that the pattern bound under ``name``."""
        found = constant(self.values[name])
        if found is None:
            raise KeyError(f"'{name}' is bound to no constant")
        return found


def match(pattern: Op, node: oir.Node) -> Match | None:
    """The first way in which ``node`` is the root of ``pattern``, else None."""
    found = next(_node(pattern, node, Match({}, ())), None)
    if found is None:
        return None
    # A tensor that is used twice is matched twice.
    return Match(found.values, tuple(dict.fromkeys(found.nodes)), found.named)


def _node(term: Op, node: oir.Node, so_far: Match) -> Iterator[Match]:
    if node.op_type not in term.op_types or node.domain not in ("", "ai.onnx"):
        return
    inputs = list(node.inputs)
    while inputs and inputs[-1] is None:
        inputs.pop()
    if len(inputs) != len(term.inputs):
        return
    for name, wanted in term.attributes.items():
        if attribute(node, name) != wanted:
            return
    named = {**so_far.named, term.name: node} if term.name else so_far.named
    start = Match(so_far.values, (*so_far.nodes, node), named)
    orders: Iterable[Sequence[oir.Value | None]] = [inputs]
    if node.op_type in COMMUTATIVE and len(inputs) == 2:
        orders = itertools.permutations(inputs)
    for order in orders:
        yield from _inputs(term.inputs, order, start)


def _inputs(
    terms: Sequence[Term], values: Sequence[oir.Value | None], so_far: Match
) -> Iterator[Match]:
    if not terms:
        yield so_far
        return
    for one in _value(terms[0], values[0], so_far):
        yield from _inputs(terms[1:], values[1:], one)


def _value(term: Term, value: oir.Value | None, so_far: Match) -> Iterator[Match]:
    if value is None:
        return
    if isinstance(term, Alt):
        for one in term.terms:
            yield from _value(one, value, so_far)
        return
    if isinstance(term, Op):
        producer = value.producer()
        if producer is not None and producer.op_type in term.op_types and value.index() == 0:
            yield from _node(term, producer, so_far)
        return
    if isinstance(term, Const) and not _constant_fits(term, value):
        return
    if not term.name:
        yield so_far
    elif so_far.values.get(term.name, value) is value:
        yield Match({**so_far.values, term.name: value}, so_far.nodes, so_far.named)


def _constant_fits(term: Const, value: oir.Value) -> bool:
    array = constant(value)
    if array is None:
        return False
    if term.value is None:
        return True
    if array.size == 0 or array.size > 4096 or array.dtype.kind not in "fiu":
        return False
    numbers = np.asarray(array, np.float64)
    return bool(np.allclose(numbers, term.value, rtol=term.rtol, atol=0.0))


def escape(found: Match) -> str | None:
    """Why the inner tensors of a match cannot vanish: the first one read elsewhere, else None."""
    inside = set(found.nodes)
    for node in found.nodes[1:]:
        for value in node.outputs:
            if is_graph_output(value):
                return f"its inner tensor '{value.name}' is an output of the model"
            for use in value.uses():
                if use.node not in inside:
                    return f"its inner tensor '{value.name}' is also read by '{use.node.name}'"
    return None


def stand_for(new: oir.Node, sources: Iterable[oir.Node]) -> None:
    """Give ``new`` the origins of ``sources`` (the anchor first) and the anchor's name."""
    kept = list(sources)
    set_origin(new, kept)
    new.name = origin(new) or next((n.name for n in kept if n.name), new.name)


def replace(found: Match, new: Sequence[oir.Node], anchor: oir.Node | None = None) -> None:
    """Put ``new`` where the match's root stands; the last node's first output takes over its name.

    The last of ``new`` stands for all matched nodes, ``anchor`` (default: the root) first, unless
    another of them already has origins. Matched nodes that nothing reads any more are removed.
    """
    root = found.root
    old = root.outputs[0]
    graph = root.graph
    if not isinstance(graph, oir.Graph):
        raise TypeError(f"node '{root.name}' belongs to no graph")
    if not any(origin(n) for n in new):
        stand_for(new[-1], [anchor or root, *found.nodes])
    graph.insert_after(root, new)
    _take_over(old, new[-1].outputs[0])
    _remove_dead(found.nodes)


def absorb(node: oir.Node, followers: Sequence[oir.Node], *, credit: bool = True) -> None:
    """Let ``node`` yield what the last of ``followers`` (a chain behind it) yielded; removes them.

    Args:
        node: has one output in use.
        followers: in graph order.
        credit: whether ``node`` stands for them from now on.
    """
    last = followers[-1].outputs[0]
    if credit:
        set_origin(node, [node, *followers])
    _take_over(last, node.outputs[0])
    _remove_dead(followers)


def _take_over(old: oir.Value, new: oir.Value) -> None:
    name = old.name
    new.type = old.type if old.type is not None else new.type
    new.shape = old.shape if old.shape is not None else new.shape
    new.metadata_props.update(old.metadata_props)
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    old.name = None
    new.name = name


def _remove_dead(nodes: Sequence[oir.Node]) -> None:
    waiting = [n for n in nodes if isinstance(n.graph, oir.Graph)]
    while True:
        dead = [n for n in waiting if not any(v.uses() or is_graph_output(v) for v in n.outputs)]
        if not dead:
            return
        waiting = [n for n in waiting if n not in dead]
        for node in dead:
            if isinstance(node.graph, oir.Graph):
                node.graph.remove(node, safe=True)


@dataclass(frozen=True)
class Rule:
    """One rewrite.

    Attributes:
        what: the result, for notes ("HardSwish").
        patterns: tried in order; the first that matches counts.
        check: None if the site can be rewritten, else the reason why not; edits nothing.
        build: the nodes to put in place, in order; the last yields the result.
    """

    what: str
    patterns: tuple[Op, ...]
    build: Callable[[Match, CompileState], Sequence[oir.Node]]
    check: Callable[[Match, CompileState], str | None] = lambda found, state: None


def apply_rules(
    state: CompileState, rules: Sequence[Rule], outermost_first: bool = False
) -> PassResult:
    """Apply ``rules`` once over the main graph; rules given first win where several match.

    Args:
        state: the model.
        rules: what to look for.
        outermost_first: visit consumers before producers, for patterns that contain one another;
            otherwise in graph order, so that a rule sees what rules made of its inputs.
    """
    notes: list[Note] = []
    changed = 0
    roots = {t for rule in rules for p in rule.patterns for t in p.op_types}
    nodes = list(state.model.graph)
    for node in reversed(nodes) if outermost_first else nodes:
        if node.op_type not in roots or node.graph is None:
            continue
        for rule in rules:
            found = next((m for p in rule.patterns if (m := match(p, node)) is not None), None)
            if found is None:
                continue
            where = origin(node) or node.name or ""
            reason = escape(found) or rule.check(found, state)
            if reason is None:
                replace(found, rule.build(found, state))
                notes.append(Note(where, f"{len(found.nodes)} nodes became {rule.what}", True))
                changed += 1
                break
            notes.append(Note(where, f"not made {rule.what}: {reason}"))
    return PassResult(changed, tuple(notes))
