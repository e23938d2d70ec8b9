"""ranges.npz: the statistics of a calibration as a file whose bytes depend on nothing else.

A plain numpy archive: ``numpy.load(path)["low"]`` and ``["high"]`` are the chosen ranges in the order
of "tensors" in the JSON text ``["meta"]``; the other arrays are the statistics, so that any estimator can be
asked again without the data.
"""

from __future__ import annotations

import json
import math
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from qcompile.calibration import Calibration, Convergence
from qcompile.calibrators.histogram import Histogram
from qcompile.calibrators.store import TensorStore
from qcompile.environment import describe_versions
from qcompile.ir.errors import CalibrationError
from qcompile.ir.spec import Granularity, QuantSpec
from qcompile.npz import write_npz

__all__ = ["FORMAT", "read_ranges", "write_ranges"]

FORMAT = 1
"""Raised when the meaning of a member changes."""

_KIND = "qcompile ranges"

Arrays = Mapping[str, npt.NDArray[Any]]


def write_ranges(calibration: Calibration, path: Path) -> None:
    """Write ``path``, all or nothing.

    Raises:
        OutputError: it cannot be written.
    """
    names = list(calibration.fit)
    chosen = calibration.ranges()
    arrays: dict[str, npt.NDArray[Any]] = {
        "low": np.array([float(r.low) for r in chosen.values()]),
        "high": np.array([float(r.high) for r in chosen.values()]),
    }
    arrays |= _pack("fit", [calibration.fit[n] for n in names])
    if calibration.held:
        arrays |= _pack("held", [calibration.held[n] for n in names])
    text = json.dumps(_meta(calibration, names), sort_keys=True, indent=1)
    arrays["meta"] = np.frombuffer(text.encode(), np.uint8)
    write_npz(Path(path), arrays)


def _meta(calibration: Calibration, names: list[str]) -> dict[str, Any]:
    spec, report = calibration.spec, calibration.convergence
    chosen = calibration.ranges()
    return {
        "kind": _KIND,
        "format": FORMAT,
        "versions": describe_versions(),
        "model_sha256": calibration.model_sha256,
        "data_sha256": calibration.data_sha256,
        "samples": calibration.samples,
        "method": calibration.method,
        "sampled": calibration.sampled,
        "spec": {
            "dtype": spec.dtype,
            "symmetric": spec.symmetric,
            "axis": spec.granularity.axis,
            "block": spec.granularity.block,
            "narrow": spec.narrow,
            "bits": spec.bits,
        },
        "tensors": list(chosen),
        "methods": [limits.method for limits in chosen.values()],
        "observed": names,
        "same": list(calibration.same.items()),
        "unusable": calibration.unusable,
        "whole": {n: None if math.isinf(v) else v for n, v in calibration.whole.items()},
        "convergence": None
        if report is None
        else {
            "enough": report.enough,
            "moving": list(report.moving),
            "clipped": dict(report.clipped),
        },
    }


def _pack(side: str, stores: list[TensorStore]) -> dict[str, npt.NDArray[Any]]:
    histograms = [s.histogram for s in stores]
    reals = [(s.low, s.high, s.histogram.low, s.histogram.high) for s in stores]
    whole = [
        (s.elements, h.exponent, h.first, len(h.counts), h.zeros, h.capacity)
        for s, h in zip(stores, histograms, strict=True)
    ]
    return {
        f"{side}_limits": np.array(reals, np.float64).reshape(-1, 4),
        f"{side}_shape": np.array(whole, np.int64).reshape(-1, 6),
        f"{side}_counts": np.concatenate([h.counts for h in histograms] or [np.zeros(0, np.int64)]),
    }


def _unpack(side: str, arrays: Arrays) -> list[TensorStore]:
    stores, at = [], 0
    for reals, whole in zip(arrays[f"{side}_limits"], arrays[f"{side}_shape"], strict=True):
        elements, exponent, first, length, zeros, capacity = (int(n) for n in whole)
        counts = np.array(arrays[f"{side}_counts"][at : at + length], np.int64)
        at += length
        low, high, lowest, highest = (float(r) for r in reals)
        histogram = Histogram(capacity, exponent, first, counts, zeros, lowest, highest)
        stores.append(TensorStore(low, high, elements, histogram))
    return stores


def read_ranges(
    path: Path, *, model_sha256: str | None = None, data_sha256: str | None = None
) -> Calibration:
    """Read what ``write_ranges`` wrote; hashes that are given must match.

    Raises:
        CalibrationError: no such file, not of this kind, or of another model or other data.
    """
    path = Path(path)
    if not path.is_file():
        raise CalibrationError(f"ranges file '{path}' does not exist")
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        meta = json.loads(arrays["meta"].tobytes())
        if meta["kind"] != _KIND:
            raise ValueError(f"it holds '{meta['kind']}'")
        found = meta["format"]
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as e:
        raise CalibrationError(
            f"'{path}' is no ranges file that qcompile wrote ({e}); calibrate again"
        ) from e
    if found != FORMAT:
        raise CalibrationError(
            f"'{path}' has format {found}, this version of qcompile reads {FORMAT}; calibrate again"
        )
    for what, expected in (("model", model_sha256), ("data", data_sha256)):
        stored = meta[f"{what}_sha256"]
        if expected is not None and stored != expected:
            raise CalibrationError(
                f"'{path}' was made from another {what} (sha256 {stored[:12] or 'not recorded'}, here "
                f"{expected[:12]}); calibrate again without --ranges"
            )
    return _calibration(meta, arrays)


def _calibration(meta: dict[str, Any], arrays: Arrays) -> Calibration:
    names, spec, report = meta["observed"], meta["spec"], meta["convergence"]
    held = _unpack("held", arrays) if "held_limits" in arrays else []
    return Calibration(
        fit=dict(zip(names, _unpack("fit", arrays), strict=True)),
        held=dict(zip(names, held, strict=True)) if held else {},
        samples=meta["samples"],
        spec=QuantSpec(
            spec["dtype"],
            spec["symmetric"],
            Granularity(spec["axis"], spec["block"]),
            spec["narrow"],
            spec["bits"],
        ),
        method=meta["method"],
        sampled=meta["sampled"],
        same=dict(meta["same"]),
        unusable=meta["unusable"],
        whole={n: math.inf if v is None else v for n, v in meta.get("whole", {}).items()},
        convergence=None
        if report is None
        else Convergence(report["enough"], tuple(report["moving"]), report["clipped"]),
        model_sha256=meta["model_sha256"],
        data_sha256=meta["data_sha256"],
    )
