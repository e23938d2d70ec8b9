"""The types of the capability tables. A Target is data; the rows stand in backends/tables.py."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from qcompile.ir.errors import TargetError
from qcompile.ir.plan import INT8
from qcompile.ir.spec import QuantSpec

__all__ = ["AttributeValue", "OpSupport", "Role", "Target", "WeightForm"]

Role = Literal["compute", "elementwise", "passthrough"]
"""compute: Conv, MatMul, ... (MACs); elementwise: has its own integer kernel and output scale;
passthrough: moves values without changing them, so input and output share scale and zero point."""

AttributeValue = int | float | str | tuple[int, ...] | None


@dataclass(frozen=True)
class OpSupport:
    """One row: how a target runs one operator in integers.

    Attributes:
        op_type: ONNX operator, default domain unless ``domain`` says otherwise.
        role: see ``Role``.
        activations: indices of inputs that take an activation Q/DQ. ``None`` means all inputs.
        outputs: indices of outputs that are integers; ``None`` means all. A node of which
            another output is used stays float.
        weight: index of the input that takes the weight spec when it is constant, or None.
        weight_constant: the weight must be constant (Conv); False: it may be an activation (MatMul).
        weight_axis: output-channel axis of the weight ("auto" = Gemm's, by transB), negative
            from the end, None per-tensor.
        weight_ranks: ranks of the weight that the kernel takes.
        per_channel_ranks: ranks of the weight that it takes with a scale per channel.
        bias: index of an int32 bias input, or None.
        quantized_output: the kernel writes integers only (QLinearConv); False: it can write float
            too (MatMulIntegerToFloat), so its output needs no Q where nothing integer follows.
        beside: operators of which one computes an input of this one: that input stays float, for this
            operator joins their kernel; only the other input takes a Q/DQ (a residual Add).
        few_channels: below so many channels a float kernel is faster; see ``passes.channel_limits``.
        block: numbers along the summed axis that share a scale: it must be a multiple, and longer.
        absorbs: operators behind it that its requantization can take in (Relu), so that they vanish.
        allowed: attribute -> the values that are legal; None among them: the attribute is absent.
        static: a form with fixed activation scales exists.
        dynamic: a form exists that quantizes its activation at run time (float edges).
        min_opset: default-domain opset from which the integer form is legal.
        max_opset: last opset, None for no limit.
        source: where this was learned: "tried ORT 1.31", "header", "vendor doc ...".
    """

    op_type: str
    role: Role
    activations: tuple[int, ...] | None = (0,)
    outputs: tuple[int, ...] | None = (0,)
    weight: int | None = None
    weight_constant: bool = True
    weight_axis: int | Literal["auto"] | None = None
    weight_ranks: tuple[int, ...] | None = None
    per_channel_ranks: tuple[int, ...] | None = None
    bias: int | None = None
    quantized_output: bool = True
    beside: tuple[str, ...] = ()
    few_channels: int = 0
    block: int = 0
    absorbs: tuple[str, ...] = ()
    allowed: Mapping[str, tuple[AttributeValue, ...]] = field(default_factory=dict)
    static: bool = True
    dynamic: bool = False
    min_opset: int = 10
    max_opset: int | None = None
    domain: str = ""
    source: str = ""


@dataclass(frozen=True)
class WeightForm:
    """How a target stores weights in few bits, with activations in float.

    Attributes:
        bits: of a layer's weights.
        block: weights that share a scale.
        codebook: indices into the NF4 table instead of integers on an even grid.
        edge_bits: of embeddings and of the layer that writes the logits.
        accuracy_level: of MatMulNBits.
        blocks: sizes whose kernels are fast.
        dequantized: layers stay as they are and read their matrix through a DequantizeLinear, for a builder
            that fuses the two; else they become the runtime's own operators.
        source: where this was learned.
    """

    bits: int
    block: int = 32
    codebook: bool = False
    edge_bits: int = 8
    accuracy_level: int = 4
    blocks: tuple[int, ...] = (16, 32, 64, 128, 256)
    dequantized: bool = False
    source: str = ""


@dataclass(frozen=True)
class Target:
    """A capability table: what one runtime on one kind of device can do.

    Attributes:
        name: as given to ``--target``.
        backend: the module of ``qcompile.backends`` that lowers to it.
        device: the row of devices ("x86-vnni", ...).
        activation: request for activations.
        weight: request for constant weights (its granularity is replaced by each row's axis).
        ops: op_type -> row.
        left_float: op_type -> why the target has no row for an operator that one might expect.
        qdq_opset: default-domain opset that QuantizeLinear needs.
        per_channel_opset: default-domain opset that per-channel DequantizeLinear needs.
        concat_shares_scale: whether Concat's inputs must share one scale.
        float_constants: constants stand as float values on their grid with Q and DQ behind them,
            instead of as integers with a DQ.
        quantizes_anywhere: a float kernel can write integers, so that what stands between layers needs
            no integer producer to be worth reading them.
        wide_activation: request for activations of layers that are "int16", a static form beside
            the first one with the same weights; None where the target has none.
        precision: the plan's word for a layer in this target's static form.
        rests: types that what stays float may take, the default first; what does not fit 16 bits
            stays float32.
        longest_attention: positions up to which attention in 8 bits is one kernel; 0 where that is
            not known.
        attention_channels: channels of a head with which attention in 8 bits is one kernel; () where
            that is not known.
        every_head: attention whose heads have other channels is 8 bits nevertheless.
        vector_weights: weights from which on a product of few rows gains by 8 bits.
        vector_ops: operators to which that applies.
        wide: op_type -> why it stays float32 where what stays float has 16 bits.
        opset: default-domain opset to upgrade to where every node can follow.
        rest_opsets: rest -> the opset that it needs, where that is another.
        portable: the artifact is the Q/DQ model itself, which the device's own library builds.
        weights: the weights alone become integers, in this form; None where activations do too.
        notes: what was chosen for this device and why, for the report.
        features: the device's features that the choice rests on.
    """

    name: str
    backend: str
    device: str
    activation: QuantSpec
    weight: QuantSpec
    ops: Mapping[str, OpSupport]
    left_float: Mapping[str, str] = field(default_factory=dict)
    qdq_opset: int = 10
    per_channel_opset: int = 13
    concat_shares_scale: bool = False
    float_constants: bool = False
    quantizes_anywhere: bool = False
    wide_activation: QuantSpec | None = None
    precision: str = INT8
    rests: tuple[str, ...] = ("fp32",)
    longest_attention: int = 0
    attention_channels: tuple[int, ...] = ()
    every_head: bool = False
    vector_weights: int = 0
    vector_ops: tuple[str, ...] = ("MatMul", "Gemm", "Conv")
    wide: Mapping[str, str] = field(default_factory=dict)
    opset: int = 17
    rest_opsets: Mapping[str, int] = field(default_factory=dict)
    portable: bool = False
    weights: WeightForm | None = None
    notes: tuple[str, ...] = ()
    features: tuple[str, ...] = field(default=())

    def with_rest(self, rest: str | None) -> Target:
        """The same target with what stays float in another of its types; None leaves the default.

        Raises:
            TargetError: it has no such rest.
        """
        if rest is None:
            return self
        if rest not in self.rests:
            able = ", ".join(self.rests)
            raise TargetError(f"--rest {rest}: what stays float with {self.name} is {able}")
        return replace(self, rests=(rest,), opset=self.rest_opsets.get(rest, self.opset))

    def preferring(self, prefer: str) -> Target:
        """The same target with other limits on 8 bits where they cost an engine kernels.

        Args:
            prefer: "kernels" leaves float what is fewer kernels so, "layers" nothing for that reason,
                "balance" what the table says.

        Raises:
            TargetError: it has no such limits.
        """
        if prefer == "balance":
            return self
        narrow = any(row.few_channels and not row.block for row in self.ops.values())
        if not (narrow or self.vector_weights or self.longest_attention):
            raise TargetError(
                f"--prefer {prefer}: {self.name} leaves no layer float to save a kernel; leave it out"
            )
        if prefer == "kernels":
            return replace(self, vector_ops=Target.vector_ops)
        rows = {
            name: row if row.block else replace(row, few_channels=0)
            for name, row in self.ops.items()
        }
        return replace(self, ops=rows, longest_attention=0, every_head=True, vector_weights=0)

    def support(self, op_type: str, domain: str = "") -> OpSupport | None:
        """The row for an operator, or None when the target runs it in float only."""
        row = self.ops.get(op_type)
        return row if row is not None and row.domain == domain else None
