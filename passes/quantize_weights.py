"""Round constant weights to integers, with scales that leave room for the int32 bias.

q_w = round(w / s_w), per output channel. The bias becomes round(b / (s_x * s_w)) in int32; where
that would overflow, s_w of the channel is enlarged and the weight rounded again.

A range search fills ``state.qparams`` and learned rounding fills ``state.weights`` before this pass;
both are kept.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import onnx_ir as oir

from qcompile.ir.affine import (
    QParams,
    accumulator_bound,
    bias_qparams,
    quantize,
    quantize_bias,
    quantize_weight,
)
from qcompile.ir.errors import PassError
from qcompile.ir.graph import constant
from qcompile.ir.manager import CompileState, PassResult
from qcompile.ir.notes import Note
from qcompile.ir.weights import IntegerWeight
from qcompile.passes.integer_region import Region, integer_region
from qcompile.passes.quantizable import Site
from qcompile.passes.share_scales import choose_scales

__all__ = ["QuantizeWeights", "choose_weights", "integer_bias", "weight_keys"]

Array = npt.NDArray[np.generic]


@dataclass(frozen=True)
class QuantizeWeights:
    """Fills ``state.weights``; entries that stand there already are kept where the bias allows."""

    name: str = "quantize-weights"

    def run(self, state: CompileState) -> PassResult:
        """Round every weight of the plan's integer sites; edits no graph."""
        region = integer_region(state)
        choose_scales(state, region)
        return choose_weights(state, region)


def weight_keys(region: Region) -> dict[oir.Node, str]:
    """Site's node -> key of its weight in ``state.weights``: the weight's name.

    A weight that is read along two axes (by two Gemms, one transposed) has one entry for each; the
    later one's key ends in ``:axis1``.
    """
    keys: dict[oir.Node, str] = {}
    axes: dict[str, list[int | None]] = {}
    for site in region.sites.values():
        if site.weight is None or site.weight_spec is None:
            continue
        name, axis = site.weight.name or "", site.weight_spec.granularity.axis
        known = axes.setdefault(name, [])
        if axis not in known:
            known.append(axis)
        keys[site.node] = name if axis == known[0] else f"{name}:axis{axis}"
    return keys


def choose_weights(state: CompileState, region: Region) -> PassResult:
    """Fill ``state.weights`` and ``state.qparams`` for the weights of ``region``."""
    readers: dict[str, list[Site]] = {}
    for node, key in weight_keys(region).items():
        readers.setdefault(key, []).append(region.sites[node])
    notes: list[Note] = []
    count = 0
    for key, sites in readers.items():
        before = state.weights.get(key)
        weight = before or _round(state, key, sites[0])
        weight, changed = _make_room(state, weight, sites)
        if changed:
            text = f"scale of {changed} channels enlarged so that the int32 bias cannot overflow"
            notes.append(Note(key, text, changed=True))
        if weight is not before:
            state.weights[key] = weight
            state.qparams[key] = weight.qparams
            count += 1
    return PassResult(count, tuple(notes))


def _array(value: oir.Value | None) -> Array:
    found = constant(value)
    if found is None:
        raise PassError(f"'{value.name if value else ''}' is no longer constant")
    return found


def _round(state: CompileState, key: str, site: Site) -> IntegerWeight:
    array = _array(site.weight)
    given = state.qparams.get(key)
    if given is not None:
        return IntegerWeight(quantize(array, given), given)
    if site.weight_spec is None:
        raise PassError(f"node '{site.origin}' has a weight but no request for it")
    return IntegerWeight(*quantize_weight(array, site.weight_spec))


def _make_room(
    state: CompileState, weight: IntegerWeight, sites: list[Site]
) -> tuple[IntegerWeight, int]:
    """Enlarge the scale until the bias of every reader fits; returns how many channels changed."""
    scale = weight.qparams.scale
    for site in sites:
        if site.bias is not None:
            _, scale = quantize_bias(
                _bias(site, scale), _input_scale(state, site), scale, _reach(state, weight)
            )
    changed = int(np.count_nonzero(scale != weight.qparams.scale))
    if not changed:
        return weight, 0
    qparams = QParams(scale, weight.qparams.zero_point, weight.qparams.spec)
    again = quantize(_array(sites[0].weight), qparams)
    if qparams.spec.granularity.axis is None:
        values = again
    else:
        # Channels with room keep their integers, which may be learned ones.
        axis = qparams.spec.granularity.axis % again.ndim
        shape = tuple(-1 if i == axis else 1 for i in range(again.ndim))
        values = np.where((scale != weight.qparams.scale).reshape(shape), again, weight.values)
    return replace(weight, values=values.astype(again.dtype), qparams=qparams), changed


def _reach(state: CompileState, weight: IntegerWeight) -> npt.NDArray[np.float64]:
    return accumulator_bound(
        weight.values, state.target.activation, weight.qparams.spec.granularity.axis
    )


def _input_scale(state: CompileState, site: Site) -> Array:
    row = site.row
    index = row.activations[0] if row is not None and row.activations else 0
    return state.qparams[site.activations[index].name or ""].scale


def _bias(site: Site, scale: Array) -> npt.NDArray[np.float32]:
    """The float bias, one number per output channel (Gemm's may be (1, n) or a single number)."""
    flat = np.asarray(_array(site.bias), np.float32).reshape(-1)
    if flat.size == 1 and scale.ndim == 1:
        return np.repeat(flat, scale.shape[0])
    return flat


def integer_bias(
    state: CompileState, site: Site, weight: IntegerWeight
) -> tuple[npt.NDArray[np.int32], QParams]:
    """The int32 bias of a site and its parameters (scale s_x * s_w, zero point 0).

    Raises:
        PassError: bias and products could leave int32; ``choose_weights`` makes room for them.
    """
    qparams = bias_qparams(_input_scale(state, site), weight.qparams.scale)
    values = quantize(_bias(site, weight.qparams.scale), qparams)
    # Room was made up to ACCUMULATOR_LIMIT; what rounding adds to that must stay in its slack.
    if np.any(np.abs(values.astype(np.float64)) + _reach(state, weight) > np.iinfo(np.int32).max):
        raise PassError(f"the bias of node '{site.origin}' does not fit int32 beside its weight")
    return values.astype(np.int32), qparams
