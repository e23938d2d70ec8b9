"""learned.npz: learned weights and bias shifts, small: what is not the nearest integer.

The integers follow from the model's own weights, the scales stored here and the differences to the
nearest integers, most of which are 0; the bytes depend on nothing else.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as oir

from qcompile.ir.affine import QParams, quantize, storage_dtype
from qcompile.ir.errors import OptionError
from qcompile.ir.graph import constant
from qcompile.ir.spec import Granularity, QuantSpec
from qcompile.ir.weights import IntegerWeight
from qcompile.learning import Learned
from qcompile.npz import write_npz

__all__ = ["LEARNED", "read_learned", "write_learned"]

LEARNED = "learned.npz"
FORMAT = 1

Array = npt.NDArray[np.generic]


def write_learned(path: Path, learned: Learned, model: oir.Model) -> None:
    """Write what was learned about the prepared ``model``."""
    constants = _constants(model)
    deltas, scales, zeros, shifts = [], [], [], []
    weights: list[dict[str, Any]] = []
    for key, weight in sorted(learned.weights.items()):
        spec, scale = weight.qparams.spec, weight.qparams.scale
        nearest = quantize(_weight(constants, key, path), weight.qparams)
        delta = weight.values.astype(np.int16) - nearest.astype(np.int16)
        deltas.append(delta.reshape(-1))
        scales.append(scale.reshape(-1))
        zeros.append(weight.qparams.zero_point.astype(np.int16).reshape(-1))
        weights.append(
            {
                "key": key,
                "dtype": spec.dtype,
                "symmetric": spec.symmetric,
                "axis": spec.granularity.axis,
                "narrow": spec.narrow,
                "bits": spec.bits,
                "scales": scale.size,
                "source": weight.source,
            }
        )
    order = sorted(learned.bias_shifts)
    shifts = [learned.bias_shifts[name] for name in order]
    meta = {
        "format": FORMAT,
        "weights": weights,
        "shifts": [[name, learned.bias_shifts[name].size] for name in order],
    }
    write_npz(
        path,
        {
            "meta": np.frombuffer(json.dumps(meta, sort_keys=True).encode(), np.uint8),
            "delta": _joined(deltas, np.int16),
            "scale": _joined(scales, np.float32),
            "zero_point": _joined(zeros, np.int16),
            "shift": _joined(shifts, np.float32),
        },
    )


def read_learned(path: Path, model: oir.Model) -> Learned:
    """What ``write_learned`` wrote about the same prepared model.

    Raises:
        OptionError: the file is not readable, or of another model.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        meta = json.loads(arrays["meta"].tobytes())
        if meta["format"] != FORMAT:
            raise ValueError(f"format {meta['format']} is not {FORMAT}")
        return _unpack(path, meta, arrays, _constants(model))
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as e:
        raise OptionError(f"'{path}' is no {LEARNED} that this qcompile wrote ({e})") from e


def _unpack(
    path: Path,
    meta: dict[str, Any],
    arrays: Mapping[str, npt.NDArray[Any]],
    constants: Mapping[str, Array],
) -> Learned:
    weights: dict[str, IntegerWeight] = {}
    at = scale_at = 0
    for one in meta["weights"]:
        real = _weight(constants, one["key"], path)
        spec = QuantSpec(
            one["dtype"], one["symmetric"], Granularity(one["axis"]), one["narrow"], one["bits"]
        )
        shape = () if one["axis"] is None else (one["scales"],)
        span = slice(scale_at, scale_at + one["scales"])
        zero = arrays["zero_point"][span].reshape(shape).astype(storage_dtype(spec))
        qparams = QParams(arrays["scale"][span].reshape(shape), zero, spec)
        nearest = quantize(real, qparams)
        delta = arrays["delta"][at : at + real.size].reshape(real.shape)
        values = (nearest.astype(np.int16) + delta).astype(nearest.dtype)
        weights[one["key"]] = IntegerWeight(values, qparams, one["source"])
        at, scale_at = at + real.size, scale_at + one["scales"]
    shifts: dict[str, npt.NDArray[np.float32]] = {}
    at = 0
    for name, size in meta["shifts"]:
        shifts[name] = arrays["shift"][at : at + size]
        at += size
    return Learned(weights, shifts)


def _joined(parts: list[Any], dtype: Any) -> npt.NDArray[Any]:
    return np.concatenate(parts) if parts else np.zeros(0, dtype)


def _constants(model: oir.Model) -> dict[str, Array]:
    values = list(model.graph.initializers.values())
    values += [v for n in model.graph if n.op_type == "Constant" for v in n.outputs]
    found = {v.name or "": constant(v) for v in values}
    return {name: array for name, array in found.items() if array is not None}


def _weight(constants: Mapping[str, Array], key: str, path: Path) -> Array:
    """The model's weight that a key of ``weight_keys`` speaks of."""
    found = constants.get(key)
    if found is None:
        found = constants.get(key.rpartition(":axis")[0])
    if found is None:
        raise OptionError(f"'{path}' speaks of weight '{key}', which this model does not have")
    return found
