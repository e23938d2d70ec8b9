"""What a plan asks for, resolved on the graph: which sites are integer, which tensors get a Q/DQ.

A region is computed before the first edit and holds for one graph; passes that edit throw it away.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

import onnx_ir as oir

from qcompile.ir.errors import PassError, TargetError
from qcompile.ir.graph import single_consumer
from qcompile.ir.manager import CompileState
from qcompile.ir.notes import Note
from qcompile.ir.plan import FP8, INT8, INT16, NVFP4
from qcompile.ir.target import Target
from qcompile.passes.quantizable import Site, classify, static_sites

__all__ = ["Region", "integer_region", "observed_tensors", "pairs", "qdq_tensors"]


@dataclass
class Region:
    """The integer part of a graph under a plan.

    Attributes:
        sites: node -> site, integer ones in graph order, without those taken in by another.
        absorbed: integer site's output -> output of the Relu or Clip that its kernel takes in.
        tensors: those that get a Q/DQ, in graph order.
        written: among them, those that an integer kernel writes: all their consumers read the DQ.
        wide: sites whose activations take 16 bits.
        wide_written: tensors that those write.
        refused: sites that the plan wants integer and that stay float, with reasons.
    """

    sites: dict[oir.Node, Site] = field(default_factory=dict)
    absorbed: dict[oir.Value, oir.Value] = field(default_factory=dict)
    tensors: list[oir.Value] = field(default_factory=list)
    written: set[oir.Value] = field(default_factory=set)
    wide: set[oir.Node] = field(default_factory=set)
    wide_written: set[oir.Value] = field(default_factory=set)
    refused: list[Note] = field(default_factory=list)

    def result(self, output: oir.Value) -> oir.Value:
        """What stands for a site's output: that of the activation it takes in, else itself."""
        return self.absorbed.get(output, output)


def pairs(sites: Iterable[Site]) -> dict[oir.Node, Site]:
    """Relu or Clip -> the site before it whose kernel takes it in (and has no other reader).

    The two are one kernel, so a Relu of a pair has no precision of its own: it follows its owner.
    """
    by_node = {site.node: site for site in sites if not site.reason}
    found: dict[oir.Node, Site] = {}
    for site in by_node.values():
        if site.role != "elementwise" or len(site.activations) != 1:
            continue
        before = next(iter(site.activations.values()))
        producer = before.producer()
        owner = None if producer is None else by_node.get(producer)
        if (
            owner is not None
            and owner.node not in found
            and owner.row is not None
            and site.op_type in owner.row.absorbs
            and single_consumer(before) is site.node
        ):
            found[site.node] = owner
    return found


def observed_tensors(sites: Iterable[Site]) -> tuple[str, ...]:
    """Names of all tensors that any plan may give a Q/DQ, in graph order."""
    able = static_sites(sites)
    inside = {node.inputs[0] for node in pairs(able)}
    names: dict[str, None] = {}
    for site in able:
        for value in (*site.activations.values(), *site.outputs):
            if value not in inside:
                names[value.name or ""] = None
    return tuple(names)


def qdq_tensors(state: CompileState) -> tuple[str, ...]:
    """Names of the tensors that ``state.plan`` gives a Q/DQ: those whose range it needs.

    A plan in which some of these nodes are float needs no others.
    """
    return tuple(value.name or "" for value in integer_region(state).tensors)


def integer_region(state: CompileState) -> Region:
    """The integer part of ``state.model`` under ``state.plan``.

    Raises:
        PassError: there is no plan.
        TargetError: the user pinned a node to a precision that the target cannot run so.
    """
    if state.plan is None:
        raise PassError("no plan: choose one before the Q/DQ nodes are inserted")
    choices = state.plan.by_origin()
    sites = classify(state)
    owners = pairs(sites)
    region = Region()
    for site in sites:
        choice = choices.get(site.origin)
        owner = owners.get(site.node)
        if owner is not None and owner.node in region.sites:
            region.absorbed[next(iter(site.activations.values()))] = site.outputs[0]
            continue
        if choice is None or choice.precision not in (INT8, INT16, FP8, NVFP4):
            continue
        reason = _other_form(choice.precision, state.target) or site.reason
        if not reason and owner is not None:
            reason = f"'{owner.origin}' before it is float"
        if not reason:
            region.sites[site.node] = site
            if choice.precision == INT16:
                region.wide.add(site.node)
        elif choice.pinned:
            raise TargetError(
                f"node '{site.origin}' ({site.op_type}) is pinned to {choice.precision} but "
                f"cannot be: {reason}; remove the pin or set it to float"
            )
        else:
            region.refused.append(Note(site.origin, f"stays float: {reason}"))
    _choose_tensors(state.model.graph, region, state.qparams)
    return region


def _other_form(asked: str, target: Target) -> str:
    able = [target.precision, *([INT16] if target.wide_activation is not None else [])]
    return "" if asked in able else f"the target's form is {' or '.join(able)}, not {asked}"


def _choose_tensors(graph: oir.Graph, region: Region, given: Collection[str]) -> None:
    read = {v for site in region.sites.values() for v in site.activations.values()}
    for site in region.sites.values():
        for output in site.outputs:
            result = region.result(output)
            always = site.row is not None and site.row.quantized_output
            # a scale that the model brought stands for a rounding that it was trained with
            if always or result in read or result.name in given:
                region.written.add(result)
                if site.node in region.wide:
                    region.wide_written.add(result)
    needed = read | region.written
    ordered = list(graph.inputs) + list(graph.initializers.values())
    for node in graph:
        ordered.extend(node.outputs)
    region.tensors = [value for value in ordered if value in needed]
