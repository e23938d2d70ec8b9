"""Streams data once through the instrumented model and keeps what the range estimators need."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as oir

from qcompile.calibrators.store import TensorStore
from qcompile.ir.affine import TensorRange
from qcompile.ir.errors import CalibrationError
from qcompile.ir.spec import QuantSpec
from qcompile.passes.observe_tensors import observe_tensors

__all__ = ["Calibration", "Feed", "calibrate"]

Feed = dict[str, npt.NDArray[Any]]

UINT8 = QuantSpec("uint8", symmetric=False)


@dataclass
class Calibration:
    """What a run over data learned.

    Attributes:
        stores: tensor name -> its statistics.
        samples: how many feeds were seen.
    """

    stores: dict[str, TensorStore]
    samples: int

    def ranges(self, method: str | None = None) -> dict[str, TensorRange]:
        """The range of every tensor by an estimator (default: the one asked of ``calibrate``)."""
        return {name: store.limits() for name, store in self.stores.items()}


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
) -> Calibration:
    """Observe ``tensors`` of ``model`` (left as it is) over ``feeds``, which are read once.

    Raises:
        CalibrationError: no feed, or NaN or infinity in one or in a tensor; names sample and tensor.
    """
    import onnxruntime as ort

    instrumented = model.clone()
    probes = observe_tensors(instrumented, tensors, sample=False)
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.enable_mem_pattern = False
    options.enable_cpu_mem_arena = False
    options.log_severity_level = 3
    if custom_ops is not None:
        options.register_custom_ops_library(str(custom_ops))
    session = ort.InferenceSession(
        oir.to_proto(instrumented).SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    inputs = [i.name for i in session.get_inputs()]
    names = [n for p in probes for n in (p.low, p.high, p.total)]
    total = len(feeds) if isinstance(feeds, Sized) else None
    stores = {name: TensorStore() for name in tensors}
    count = 0
    for feed in feeds:
        _check(feed, count)
        values = iter(session.run(names, {k: feed[k] for k in inputs}))
        for probe in probes:
            low, high, summed = float(next(values)), float(next(values)), float(next(values))
            if np.isnan(summed) or not (np.isfinite(low) and np.isfinite(high)):
                raise CalibrationError(
                    f"sample {count}: tensor '{probe.tensor}' holds NaN or infinity"
                )
            stores[probe.tensor].update(low, high)
        count += 1
        if progress is not None:
            progress(count, total)
    if count == 0:
        raise CalibrationError("the calibration data are empty: give at least one sample")
    return Calibration(stores, count)


def _check(feed: Feed, index: int) -> None:
    for name, array in feed.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise CalibrationError(
                f"sample {index}: input '{name}' holds NaN or infinity; remove or repair the sample"
            )
