"""Which release of ONNX Runtime is the oldest that opens a model: by opset, IR version and operators.

Sources. Releases from 1.15 on were installed and opened models of rising opset and IR version (1.15 and
1.16 refuse what their release notes promise, which counts here); older ones are as ONNX Runtime's
docs/Versioning.md lists them. Operators of ``com.microsoft`` were looked for in the CPU build of every
release from 1.8 on; those found in 1.8 are put down as 1.8 though they may be older.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import onnx_ir as oir

from qcompile.ir.errors import OptionError
from qcompile.ir.graph import default_opset

__all__ = [
    "FOUR_AXES",
    "INTEGER_CACHE",
    "Oldest",
    "Release",
    "first_release",
    "limits_of",
    "oldest_runtime",
    "parse_release",
]

Release = tuple[int, int]
"""Major and minor number: patches open what their minor release opens."""

_RELEASES: tuple[tuple[Release, int, int], ...] = (
    ((1, 8), 14, 7),
    ((1, 9), 15, 7),
    ((1, 10), 15, 7),
    ((1, 11), 16, 8),
    ((1, 12), 17, 8),
    ((1, 13), 17, 8),
    ((1, 14), 18, 8),
    ((1, 15), 18, 9),
    ((1, 16), 19, 9),
    ((1, 17), 20, 9),
    ((1, 18), 21, 10),
    ((1, 21), 22, 10),
    ((1, 23), 23, 11),
    ((1, 24), 25, 13),
    ((1, 25), 26, 13),
)
"""Release, newest opset of the default domain, newest IR version."""

INTEGER_CACHE = "GroupQueryAttention on an integer cache"

FOUR_AXES = "RotaryEmbedding of four axes"

_SINCE: dict[str, Release] = {
    **dict.fromkeys(
        (
            "Attention",
            "BiasGelu",
            "BiasSoftmax",
            "DequantizeLinear",
            "DynamicQuantizeLSTM",
            "DynamicQuantizeMatMul",
            "EmbedLayerNormalization",
            "FastGelu",
            "FusedConv",
            "FusedGemm",
            "FusedMatMul",
            "Gelu",
            "MatMulIntegerToFloat",
            "NhwcMaxPool",
            "QAttention",
            "QLinearAdd",
            "QLinearAveragePool",
            "QLinearConcat",
            "QLinearConv",
            "QLinearGlobalAveragePool",
            "QLinearLeakyRelu",
            "QLinearMul",
            "QLinearSigmoid",
            "QuantizeLinear",
            "SkipLayerNormalization",
        ),
        (1, 8),
    ),
    "QEmbedLayerNormalization": (1, 9),
    "QGemm": (1, 9),
    "MultiHeadAttention": (1, 14),
    "QLinearSoftmax": (1, 14),
    "QLinearWhere": (1, 14),
    "QuickGelu": (1, 14),
    "SkipSimplifiedLayerNormalization": (1, 14),
    "NhwcFusedConv": (1, 15),
    "GroupQueryAttention": (1, 16),
    "MatMulNBits": (1, 16),
    "RotaryEmbedding": (1, 16),
    "QMoE": (1, 18),
    "GatherBlockQuantized": (1, 20),
    FOUR_AXES: (1, 17),
    INTEGER_CACHE: (1, 27),
}
"""Operators of com.microsoft -> first release whose CPU build has them."""


@dataclass(frozen=True)
class Oldest:
    """What a model needs of ONNX Runtime.

    Attributes:
        release: the oldest that opens it; None where something is not in the tables.
        because: what needs it, the most demanding first.
    """

    release: Release | None
    because: tuple[str, ...]

    @property
    def text(self) -> str | None:
        """As in "1.17", None where it is not known."""
        return None if self.release is None else f"{self.release[0]}.{self.release[1]}"


def parse_release(text: str) -> Release:
    """The major and minor number of ``--min-ort``.

    >>> parse_release("1.17.3")
    (1, 17)

    Raises:
        OptionError: no such number, or a release too old to be in the tables.
    """
    found = re.fullmatch(r"(\d+)\.(\d+)(\.\d+)*", text.strip())
    if found is None:
        raise OptionError(f"--min-ort '{text}' is no version of ONNX Runtime; write it as 1.17")
    release = int(found[1]), int(found[2])
    if release < _RELEASES[0][0]:
        oldest = ".".join(map(str, _RELEASES[0][0]))
        raise OptionError(
            f"--min-ort {text}: what releases before {oldest} open is not known here; "
            f"pass --min-ort {oldest} or newer"
        )
    return release


def limits_of(release: Release) -> tuple[int, int]:
    """The newest opset and the newest IR version that a release opens."""
    _, opset, ir_version = max(row for row in _RELEASES if row[0] <= release)
    return opset, ir_version


def first_release(what: str) -> Release | None:
    """The first release whose CPU build has an operator of com.microsoft, or a form of it."""
    return _SINCE.get(what)


def oldest_runtime(model: oir.Model) -> Oldest:
    """The oldest release that opens ``model``, and why."""
    needs: list[tuple[Release | None, str]] = [
        (_first(opset=default_opset(model)), f"opset {default_opset(model)}"),
        (_first(ir_version=model.ir_version), f"IR version {model.ir_version}"),
    ]
    for name in sorted(set(_contributed(model))):
        needs.append((_SINCE.get(name), f"com.microsoft.{name}"))
    unknown = [what for release, what in needs if release is None]
    if unknown:
        return Oldest(None, tuple(unknown))
    known = sorted(((r, what) for r, what in needs if r is not None), key=lambda n: n[0])
    newest = known[-1][0]
    return Oldest(newest, tuple(what for release, what in reversed(known) if release == newest))


def _first(opset: int = 0, ir_version: int = 0) -> Release | None:
    return next((r for r, known, ir in _RELEASES if known >= opset and ir >= ir_version), None)


def _contributed(model: oir.Model) -> Iterator[str]:
    for node in model.graph.all_nodes():
        if node.domain == "com.microsoft":
            yield _form(node)


def _form(node: oir.Node) -> str:
    """The operator, or the form of it that came later."""
    if "kv_cache_bit_width" in node.attributes:
        return INTEGER_CACHE
    if node.op_type == "RotaryEmbedding":
        x = node.inputs[0]
        four = x is not None and x.shape is not None and len(x.shape) == 4
        return FOUR_AXES if four or "rotary_embedding_dim" in node.attributes else node.op_type
    return node.op_type
