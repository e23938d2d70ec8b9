"""Streams data once through the instrumented model and keeps what the range estimators need."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence, Sized
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as oir
import psutil

from qcompile.backends.ort import Session, open_session
from qcompile.calibration import SETTLES_FROM, Calibration, Convergence, converge
from qcompile.calibrators.choose import check_method, merged
from qcompile.calibrators.store import TensorStore
from qcompile.ir.errors import BudgetError, CalibrationError, ModelError
from qcompile.ir.save import save_model
from qcompile.ir.spec import QuantSpec
from qcompile.passes.handed_out import handed_out
from qcompile.passes.observe_tensors import (
    STARTS,
    STRIDES,
    observable,
    observe_tensors,
    same_values,
)
from qcompile.scratch import scratch_folder

__all__ = ["Calibration", "Convergence", "Feed", "calibrate"]

Feed = dict[str, npt.NDArray[Any]]

UINT8 = QuantSpec("uint8", symmetric=False)

SAMPLE = 4096
"""Values of each tensor that cross into Python for each feed, about."""

_HELD_EVERY = 4
_HELD_FROM = 8
"""Every fourth feed judges the estimators instead of fitting them, if there are eight or more."""

_COARSE = 1024
"""Bins of statistics that are kept to compare with: ranges move by hundredths, not by thousandths."""

_INSIDE = 64 * 2**20
"""Models above this go to ONNX Runtime as a file with a side file, which it maps instead of copying."""


def calibrate(
    model: oir.Model,
    tensors: Sequence[str],
    feeds: Iterable[Feed],
    *,
    spec: QuantSpec = UINT8,
    method: str = "auto",
    threads: int = 0,
    memory_limit: int | None = None,
    seed: int = 0,
    progress: Callable[[int, int | None], None] | None = None,
    custom_ops: Path | None = None,
    without_nan: Collection[str] | None = None,
    model_sha256: str = "",
    data_sha256: str = "",
) -> Calibration:
    """Observe ``tensors`` of ``model`` (left as it is) over ``feeds``, which are read once.

    Memory does not grow with the number of feeds. With method "minmax" only minima and maxima are
    observed; with any other, whatever estimator can be asked of the result.

    Args:
        model: as it will be quantized, after the PREPARE passes.
        tensors: names of float tensors of its main graph.
        feeds: each with every input of the model; shapes may vary.
        spec: what ranges are chosen for.
        method: see ``calibrators.choose.METHODS``.
        threads: inside operators; 0 is ONNX Runtime's choice.
        memory_limit: bytes that the process may hold.
        seed: of where in a tensor samples start.
        progress: called with the feeds done and their number, if known.
        custom_ops: library with custom operators.
        without_nan: those of ``tensors`` in which NaN is an error; None stands for all. Any other that
            holds NaN (results blanked out where a mask says so), and each that holds infinity (an
            attention mask of -inf), merely has no range.
        model_sha256: recorded, and compared when the result is loaded again.
        data_sha256: the same.

    Raises:
        CalibrationError: no feed, one that does not fit, NaN, or infinity in an input; names sample
            and tensor.
        BudgetError: the memory limit cannot be kept.
        OptionError: no such method.
    """
    check_method(method)
    same = same_values(model, tensors)
    wanted = set(same.values())
    guarded = wanted if without_nan is None else {same[n] for n in without_nan if n in same}
    # In the graph's order, so that of several tensors with NaN the first to have it is named.
    ordered = [name for name in observable(model) if name in wanted]
    ordered += sorted(wanted.difference(ordered))
    result = Calibration(
        fit={name: TensorStore() for name in ordered},
        held={name: TensorStore() for name in ordered},
        samples=0,
        spec=spec,
        method=method,
        sampled=method != "minmax",
        same=same,
        whole={same[n]: limit for n, limit in handed_out(model).items() if n in same},
        model_sha256=model_sha256,
        data_sha256=data_sha256,
    )
    if not ordered:
        result.convergence = Convergence()
        return result
    names = getattr(feeds, "names", None)
    total = len(feeds) if isinstance(feeds, Sized) else None
    earlier: dict[int, dict[str, TensorStore]] = {}
    # what a session still maps cannot be removed on Windows; that is no reason to fail
    with scratch_folder() as folder:
        run = _Run(model, ordered, result.sampled, seed)
        run.open(folder, threads, custom_ops)
        for index, feed in enumerate(feeds):
            where = f"sample {index}" + (f" ({names[index]})" if names else "")
            run.check(feed, where)
            side = result.held if index % _HELD_EVERY == _HELD_EVERY - 1 else result.fit
            bad = run.observe(feed, index, where, side)
            for name, kind in bad.items():
                if kind == "NaN" and name in guarded:
                    raise CalibrationError(
                        f"{where}: tensor '{name}' holds NaN, so it has no range; remove the sample, "
                        "or repair the model"
                    )
                result.unusable.setdefault(name, f"{where} makes it {kind}")
            if memory_limit is not None:
                _keep_within(memory_limit, len(ordered))
            result.samples = index + 1
            if _checkpoint(result.samples) and result.samples != total:
                # Half of the data is what is compared with the end; older ones only cost memory.
                earlier = {n: s for n, s in earlier.items() if 2 * n >= result.samples}
                earlier[result.samples] = merged(result.fit, result.held, _COARSE)
            if progress is not None:
                progress(result.samples, total)
    if result.samples == 0:
        raise CalibrationError("the calibration data are empty; give at least one sample")
    _finish(result, earlier)
    return result


def _finish(result: Calibration, earlier: dict[int, dict[str, TensorStore]]) -> None:
    for name in result.unusable:
        del result.fit[name], result.held[name]
    if result.samples < _HELD_FROM:
        result.fit, result.held = merged(result.fit, result.held), {}
        return
    earlier.pop(result.samples, None)
    if result.samples < SETTLES_FROM:
        return
    result.convergence = converge(result, earlier)


def _checkpoint(samples: int) -> bool:
    """Whether to remember the statistics: at 8, 12, 16, 24, 32, ... samples."""
    power = 1 << (samples.bit_length() - 1)
    return samples >= 8 and samples in (power, power + power // 2)


def _keep_within(limit: int, tensors: int) -> None:
    held = psutil.Process().memory_info().rss
    if held > limit:
        raise BudgetError(
            f"calibrating {tensors} tensors holds {held / 1e6:.0f} MB, above the limit of "
            f"{limit / 1e6:.0f} MB; raise --memory-limit, or give smaller samples (batch 1)"
        )


class _Run:
    """The instrumented model, opened, and how its samples are drawn."""

    def __init__(self, model: oir.Model, tensors: Sequence[str], sampled: bool, seed: int) -> None:
        self.instrumented = model.clone()
        self.probes = observe_tensors(self.instrumented, tensors, sample=sampled)
        self.sampled = sampled
        self.seed = seed
        self.strides: npt.NDArray[np.int64] | None = None
        self.bases: npt.NDArray[np.int64] | None = None
        self.session: Session

    def open(self, folder: Path, threads: int, custom_ops: Path | None) -> None:
        """Hand the model to ONNX Runtime; ``folder`` must outlive the session."""
        weights = sum(t.nbytes for t in _constants(self.instrumented))
        source: bytes | Path
        if weights <= _INSIDE:
            source = oir.to_proto(self.instrumented).SerializeToString()
        else:
            source = folder / "model.onnx"
            save_model(self.instrumented, source, external_above=0)
        self.session = open_session(
            source,
            threads=threads or None,
            spinning=True,
            custom_ops=custom_ops,
            variable_shapes=True,
            keep_arena=True,
        )
        self.inputs = [p.name for p in self.session.inputs if p.name not in (STARTS, STRIDES)]
        self.takes_steps = len(self.inputs) < len(self.session.inputs)
        limits = [n for p in self.probes for n in (p.low, p.high, p.total)]
        self.outputs = limits + [n for p in self.probes for n in (p.size, p.sample) if n]

    def check(self, feed: Feed, where: str) -> None:
        """Make sure that a feed has every input and no NaN or infinity.

        Raises:
            CalibrationError: it does not.
        """
        for name in self.inputs:
            if name not in feed:
                raise CalibrationError(
                    f"{where} has no input '{name}'; it has {', '.join(feed) or 'none'}"
                )
            array = feed[name]
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                raise CalibrationError(
                    f"{where}: input '{name}' holds NaN or infinity; remove or repair the sample"
                )

    def observe(
        self, feed: Feed, index: int, where: str, stores: dict[str, TensorStore]
    ) -> dict[str, str]:
        """Run one feed into ``stores``; returns tensors that are not finite: "NaN" or "infinite"."""
        inputs: Feed = {name: feed[name] for name in self.inputs}
        if self.sampled and self.strides is None:
            self._plan(inputs, where)
        starts = np.zeros(len(self.probes), np.int64)
        if self.strides is not None:
            # Another place in every feed, so that in time each element is drawn.
            starts = np.random.default_rng([self.seed, index]).integers(0, self.strides)
        values = self._run(inputs, starts, where)
        bad: dict[str, str] = {}
        for i, probe in enumerate(self.probes):
            low, high = float(values[probe.low]), float(values[probe.high])
            lost = math.isnan(float(values[probe.total]))
            if lost or math.isinf(low) or math.isinf(high):
                if low > high:
                    continue  # an empty tensor: minimum +inf, maximum -inf
                # the sum over infinities of both signs is NaN too
                both = math.isinf(low) and math.isinf(high)
                bad[probe.tensor] = "NaN" if lost and not both else "infinite"
            elif probe.sample:
                self._store(stores[probe.tensor], i, values, starts)
            else:
                stores[probe.tensor].update(low, high, 0)
        return bad

    def _store(
        self,
        store: TensorStore,
        i: int,
        values: dict[str, Any],
        starts: npt.NDArray[np.int64],
    ) -> None:
        if self.strides is None or self.bases is None:
            raise RuntimeError("strides are planned before samples are drawn")
        probe = self.probes[i]
        sample, elements = values[probe.sample], int(values[probe.size])
        stride = int(self.strides[i])
        if not self.takes_steps:
            sample = sample[starts[i] :: stride]
        weight = stride // int(self.bases[i])
        store.update(float(values[probe.low]), float(values[probe.high]), elements, sample, weight)
        if len(sample) > 4 * SAMPLE:
            # Much larger feeds than the first: draw less, and let each draw count for more.
            self.strides[i] = int(self.bases[i]) * weight * (2 * (len(sample) // (2 * SAMPLE)) + 1)

    def _plan(self, inputs: Feed, where: str) -> None:
        """Choose strides from the sizes of one feed; coprime to the size, a stride meets all channels."""
        count = len(self.probes)
        self.strides = np.full(count, 2**40, np.int64)
        sizes = self._run(inputs, np.zeros(count, np.int64), where)
        self.bases = np.array([_stride(int(sizes[p.size])) for p in self.probes], np.int64)
        self.strides = self.bases.copy()

    def _run(self, inputs: Feed, starts: npt.NDArray[np.int64], where: str) -> dict[str, Any]:
        if self.takes_steps and self.strides is not None:
            inputs = {**inputs, STARTS: starts, STRIDES: self.strides}
        try:
            return self.session.run(inputs, self.outputs)
        except ModelError as e:
            raise CalibrationError(f"{where} does not run: {e}") from e


def _stride(size: int) -> int:
    """The least stride that draws about SAMPLE of ``size`` elements and shares no factor with it."""
    stride = max(1, round(size / SAMPLE))
    while stride > 1 and math.gcd(stride, size) > 1:
        stride += 1
    return stride


def _constants(model: oir.Model) -> Iterator[oir.TensorProtocol]:
    for graph in model.graphs():
        for value in graph.initializers.values():
            if value.const_value is not None:
                yield value.const_value
