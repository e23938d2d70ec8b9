"""Where a quantized graph departs from float: every quantized tensor in both, a few tensors at a time.

Noise is counted for each channel by itself and averaged. Counted over a whole tensor, one channel that
is ten thousand times larger than the others would hide that nothing is left of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx_ir as oir

from qcompile.backends.ort import AS_WRITTEN, Session, open_session
from qcompile.data.inputs import Feed
from qcompile.ir.affine import QParams, dequantize, quantize
from qcompile.ir.graph import constant
from qcompile.ir.save import save_model
from qcompile.ir.spec import QDType, QuantSpec

__all__ = ["Quantized", "TensorStats", "quantized_tensors", "seen_values"]

AT_ONCE = 40
"""Tensors that are read in one run."""

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Quantized:
    """A tensor with a Q/DQ pair.

    Attributes:
        name: of the float tensor.
        after: of the DequantizeLinear's output in the quantized model.
        qparams: what the pair rounds to.
    """

    name: str
    after: str
    qparams: QParams

    @property
    def limits(self) -> tuple[float, float]:
        """Lowest and highest real number that the pair keeps."""
        q = self.qparams
        scale, zero = float(q.scale), int(q.zero_point)
        return scale * (q.spec.qmin - zero), scale * (q.spec.qmax - zero)


@dataclass
class TensorStats:
    """What the samples showed of one tensor; sums, so memory does not grow with them.

    Attributes:
        low: least value in float.
        high: largest value in float.
        clipped: values outside of what the pair keeps by more than a step.
        count: values seen.
        peaks: largest magnitude of each channel in float.
        signal: energy of each channel in float.
        rounding: energy of the error that the pair alone makes, by channel.
        error: energy of the whole difference to float, by channel.
        nonfinite: values that are not finite in the quantized model alone.
    """

    low: float = np.inf
    high: float = -np.inf
    clipped: int = 0
    count: int = 0
    peaks: Array = field(default_factory=lambda: np.zeros(1))
    signal: Array = field(default_factory=lambda: np.zeros(1))
    rounding: Array = field(default_factory=lambda: np.zeros(1))
    error: Array = field(default_factory=lambda: np.zeros(1))
    nonfinite: int = 0

    def update(self, real: Array, after: Array, pair: Quantized) -> None:
        """Take in one sample's values in float and in the quantized model."""
        if not real.size or real.shape != after.shape:
            return
        low, high = pair.limits
        step = float(pair.qparams.scale)
        self.low, self.high = min(self.low, float(real.min())), max(self.high, float(real.max()))
        self.clipped += int(np.count_nonzero((real < low - step) | (real > high + step)))
        self.count += real.size
        wrong = ~np.isfinite(after)
        self.nonfinite += int(np.count_nonzero(wrong))
        after = np.where(wrong, 0.0, after)
        alone = dequantize(quantize(real.astype(np.float32), pair.qparams), pair.qparams)
        for name, values in (
            ("signal", np.square(real)),
            ("rounding", np.square(real - alone.astype(np.float64))),
            ("error", np.square(real - after)),
        ):
            setattr(self, name, _added(getattr(self, name), by_channel(values).sum(axis=1)))
        peaks = np.abs(by_channel(real)).max(axis=1)
        self.peaks = np.maximum(self.peaks, peaks) if self.peaks.shape == peaks.shape else peaks

    @property
    def rounding_share(self) -> float:
        """Noise of the pair alone: mean over the channels of noise / signal, each at most 1."""
        return _share(self.rounding, self.signal)

    @property
    def error_share(self) -> float:
        """The same of the whole difference to float."""
        return 1.0 if self.nonfinite else _share(self.error, self.signal)

    @property
    def constant(self) -> bool:
        """Whether all values seen were the same."""
        return bool(self.low == self.high)


def by_channel(values: Array) -> Array:
    """(channels, rest): the second axis of images, the last of anything else."""
    if values.ndim == 0:
        return values.reshape(1, 1)
    axis = 1 if values.ndim >= 4 else values.ndim - 1
    return np.moveaxis(values, axis, 0).reshape(values.shape[axis], -1)


def _added(total: Array, more: Array) -> Array:
    return total + more if total.shape == more.shape else more


def _share(noise: Array, signal: Array) -> float:
    there = signal > 0
    if not there.any():
        return 0.0
    return float(np.minimum(1.0, noise[there] / signal[there]).mean())


def quantized_tensors(model: oir.Model, names: Sequence[str]) -> list[Quantized]:
    """The activations with a Q/DQ pair, under the float model's ``names``, in graph order."""
    known = set(names)
    found: dict[str, Quantized] = {}
    for node in model.graph:
        if node.op_type != "QuantizeLinear" or node.inputs[0] is None:
            continue
        scale, zero = constant(node.inputs[1]), constant(node.inputs[2])
        reader = next((u.node for u in node.outputs[0].uses()), None)
        if scale is None or zero is None or scale.size != 1 or reader is None:
            continue
        after = reader.outputs[0].name or ""
        # A pair behind an output of the model has taken the output's name.
        name = after if after in known else node.inputs[0].name or ""
        if name not in known or constant(node.inputs[0]) is not None:
            continue
        spec = QuantSpec(_dtype(zero), symmetric=False)
        qparams = QParams(scale.reshape(()).astype(np.float32), zero.reshape(()), spec)
        found.setdefault(name, Quantized(name, after, qparams))
    return list(found.values())


def _dtype(zero: npt.NDArray[np.generic]) -> QDType:
    kinds: dict[str, QDType] = {
        "uint8": "uint8",
        "int8": "int8",
        "uint16": "uint16",
        "int16": "int16",
    }
    return kinds[zero.dtype.name]


def seen_values(
    model: oir.Model,
    quantized: oir.Model,
    pairs: Sequence[Quantized],
    feeds: Sequence[Feed],
    work: Path,
    custom_ops: Path | None = None,
) -> dict[str, TensorStats]:
    """Name -> what ``feeds`` show of each pair's tensor in both models (left as they are)."""
    stats = {pair.name: TensorStats() for pair in pairs}
    for start in range(0, len(pairs), AT_ONCE):
        part = pairs[start : start + AT_ONCE]
        one = _opened(model, [p.name for p in part], work / "float_probe.onnx", custom_ops)
        two = _opened(quantized, [p.after for p in part], work / "int_probe.onnx", custom_ops)
        for feed in feeds:
            real = _run(one, feed, [p.name for p in part])
            after = _run(two, feed, [p.after for p in part])
            for pair in part:
                a, b = real[pair.name], after[pair.after]
                stats[pair.name].update(a.astype(np.float64), b.astype(np.float64), pair)
    return stats


def _opened(model: oir.Model, names: Sequence[str], path: Path, custom_ops: Path | None) -> Session:
    probed = model.clone()
    outputs = {v.name for v in probed.graph.outputs} | {v.name for v in probed.graph.inputs}
    values = {v.name: v for v in _values(probed.graph)}
    for name in dict.fromkeys(names):
        if name not in outputs and name in values:
            probed.graph.outputs.append(values[name])
    save_model(probed, path)
    return open_session(path, custom_ops=custom_ops, config=AS_WRITTEN)


def _values(graph: oir.Graph) -> Iterator[oir.Value]:
    for node in graph:
        yield from node.outputs


def _run(
    session: Session, feed: Feed, names: Sequence[str]
) -> Mapping[str, npt.NDArray[np.generic]]:
    given = {port.name for port in session.inputs}
    asked = [name for name in dict.fromkeys(names) if name not in given]
    found = session.run({k: v for k, v in feed.items() if k in given}, asked) if asked else {}
    return {**{n: np.asarray(feed[n]) for n in names if n in given}, **found}
