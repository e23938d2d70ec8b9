"""The layers whose weights can be learned: a constant weight, its readers, and what they read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as oir

from qcompile.calibrators.gram import split_blocks
from qcompile.calibrators.rounding import nearest, round_weights, shrink_scales
from qcompile.ir.affine import QParams, TensorRange, quantize_weight
from qcompile.ir.given import NOTHING_GIVEN, Given
from qcompile.ir.graph import attribute, constant, default_opset
from qcompile.ir.manager import CompileState
from qcompile.ir.notes import Note
from qcompile.ir.plan import PrecisionPlan
from qcompile.ir.target import Target
from qcompile.ir.weights import IntegerWeight
from qcompile.passes.correct_bias import takes_shift
from qcompile.passes.integer_region import integer_region
from qcompile.passes.quantizable import Site
from qcompile.passes.quantize_weights import choose_weights, weight_keys
from qcompile.passes.share_scales import choose_scales
from qcompile.weight_inputs import Source, source_of, unfit

__all__ = ["Layer", "grouped_weight", "learnable_layers"]

FloatArray = npt.NDArray[np.float32]
Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Layer:
    """A weight and the sites that read it.

    Attributes:
        key: of the weight (see ``weight_keys``).
        sites: its readers.
        sources: for each reader, what it multiplies the weight with.
        plain: the nearest integers, with scales that leave room for the biases.
        shiftable: for each reader, whether its bias can be shifted.
    """

    key: str
    sites: tuple[Site, ...]
    sources: tuple[Source, ...]
    plain: IntegerWeight
    shiftable: tuple[bool, ...]

    @property
    def weight(self) -> FloatArray:
        """As it stands in the model."""
        found = constant(self.sites[0].weight)
        return np.zeros(0, np.float32) if found is None else found.astype(np.float32)

    @property
    def real(self) -> Array:
        """The weight as (groups, d, out)."""
        return self.grouped(self.weight)

    def grouped(self, array: npt.NDArray[np.generic]) -> Array:
        """An array of the weight's layout as (groups, d, out)."""
        return _grouped(self.sites[0], array)

    def ungrouped(self, array: Array) -> Array:
        """The reverse of ``grouped``."""
        site = self.sites[0]
        if site.op_type == "Conv":
            return np.ascontiguousarray(array.transpose(0, 2, 1)).reshape(self.weight.shape)
        turned = site.op_type == "Gemm" and attribute(site.node, "transB", 0)
        return np.ascontiguousarray(array[0].T if turned else array[0])

    def cost(self) -> float:
        """Arithmetic of the rounding, roughly."""
        groups, d, out = self.real.shape
        blocks = self.sources[0].blocks
        each = d / blocks
        return float(groups * blocks * each * each * (each / 3 + 3 * out))

    def scales(self, weight: IntegerWeight) -> Array:
        """(groups, out) of an integer form's scale."""
        groups, _, out = self.real.shape
        scale = weight.qparams.scale.astype(np.float64)
        return np.broadcast_to(scale, (groups * out,)).reshape(groups, out)

    def value(self, weight: IntegerWeight) -> Array:
        """(groups, d, out): what an integer form stands for."""
        whole = self.grouped(weight.values) - _zero_point(weight)
        return np.asarray(whole * self.scales(weight)[:, None, :])

    def fit(
        self,
        wanted: Array,
        covariance: Array,
        sweeps: int,
        source: str,
        *,
        rounding: bool = True,
        ranging: bool = True,
    ) -> IntegerWeight:
        """Integers and ranges for weights near the layer's own, by output error.

        Args:
            wanted: (groups, d, out), to be rounded.
            covariance: of what the weights are multiplied with, cut into blocks where the source is.
            sweeps: rounds of coordinate descent.
            source: who chose the integers.
            rounding: choose integers by output error, not the nearest.
            ranging: choose ranges by output error, not by the largest weight.
        """
        plain, source_of_x = self.plain, self.sources[0]
        spec, zero = plain.qparams.spec, _zero_point(plain)
        low, high = spec.qmin - zero, spec.qmax - zero
        groups, d, out = wanted.shape
        per_tensor = plain.qparams.scale.ndim == 0
        _, widest = quantize_weight(self.ungrouped(wanted).astype(np.float32), spec)
        scale = self.scales(IntegerWeight(plain.values, widest))
        variance = np.einsum("gii->gi", covariance).reshape(groups, -1)[:, :d]
        share = np.ones(scale.shape)
        if ranging:
            share = shrink_scales(wanted, scale, variance, low, high, joint=per_tensor)
        # A scale that was enlarged to make room for the bias stays that large.
        _, own = quantize_weight(self.weight, spec)
        known = self.scales(plain)
        enlarged = known > self.scales(IntegerWeight(plain.values, own))
        scale = np.where(enlarged, np.maximum(scale, known), scale * share).astype(np.float32)
        scaled = wanted / scale[:, None, :].astype(np.float64)
        if not rounding:
            integers = nearest(scaled, low, high)
        elif source_of_x.blocks > 1:
            cut = split_blocks(scaled, source_of_x.channels, source_of_x.blocks)
            whole = round_weights(cut, covariance, low, high, sweeps=sweeps)
            integers = whole.reshape(1, -1, out)[:, :d]
        else:
            integers = round_weights(scaled, covariance, low, high, sweeps=sweeps)
        flat = scale.reshape(-1)[0] if per_tensor else scale.reshape(-1)
        qparams = QParams(np.asarray(flat, np.float32), plain.qparams.zero_point, spec)
        values = (self.ungrouped(integers) + zero).astype(plain.values.dtype)
        return IntegerWeight(values, qparams, source)


def grouped_weight(site: Site) -> Array:
    """The weight of a site (that is not ``unfit``) as (groups, d, out)."""
    found = constant(site.weight)
    return _grouped(site, np.zeros((1, 1)) if found is None else found)


def _grouped(site: Site, array: npt.NDArray[np.generic]) -> Array:
    wide = array.astype(np.float64)
    if site.op_type == "Conv":
        groups = site.node.attributes.get_int("group", 1)
        rows = wide.reshape(groups, wide.shape[0] // groups, -1)
        return np.ascontiguousarray(rows.transpose(0, 2, 1))
    turned = site.op_type == "Gemm" and attribute(site.node, "transB", 0)
    return np.ascontiguousarray(wide.T if turned else wide)[None]


def _zero_point(weight: IntegerWeight) -> int:
    return int(np.asarray(weight.qparams.zero_point).reshape(-1)[0])


def learnable_layers(
    model: oir.Model,
    target: Target,
    ranges: Mapping[str, TensorRange],
    plan: PrecisionPlan,
    *,
    shift: bool = True,
    given: Given = NOTHING_GIVEN,
) -> tuple[list[Layer], list[Note]]:
    """The layers that ``plan`` makes integer, in graph order; and why others cannot be learned.

    Args:
        model: prepared float model; the layers refer to its nodes.
        target: its table says which sites can be integer.
        ranges: of activations; biases must fit beside them.
        plan: which sites are integer.
        given: scales that stay as they are; layers whose integers are given learn nothing.
        shift: let biases be shifted where the operator can take it.
    """
    state = CompileState(
        model,
        target,
        ranges=dict(ranges),
        qparams=dict(given.qparams),
        weights=dict(given.weights),
        plan=plan,
    )
    region = integer_region(state)
    choose_scales(state, region)
    choose_weights(state, region)
    readers: dict[str, list[Site]] = {}
    for node, key in weight_keys(region).items():
        readers.setdefault(key, []).append(region.sites[node])
    notes: list[Note] = []
    found: list[Layer] = []
    for key, sites in readers.items():
        if key in given.weights:
            notes.append(Note(sites[0].origin, "weights as the model brought them"))
            continue
        reason = unfit(sites[0])
        if reason:
            notes.append(Note(sites[0].origin, f"weights rounded to nearest: {reason}"))
            continue
        sources = tuple(source_of(site) for site in sites)
        shiftable = tuple(shift and not takes_shift(s.node, default_opset(model)) for s in sites)
        found.append(Layer(key, tuple(sites), sources, state.weights[key], shiftable))
    return found, notes
