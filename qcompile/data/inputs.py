"""What a model's inputs ask for, and whether a feed fits: dtype, rank, fixed dimensions, finite."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as oir

from qcompile.ir.errors import CalibrationError, ModelError

__all__ = ["Feed", "InputSpec", "fit_feed", "input_specs", "is_cache", "random_feeds"]

Feed = dict[str, npt.NDArray[np.generic]]
"""One call of the model: input name -> array."""

_RANDOM_DIM = 8
_LOSSLESS_ENOUGH = {
    ("float64", "float32"),
    ("float16", "float32"),
    ("float32", "float64"),
    ("float32", "float16"),
    ("int32", "int64"),
    ("int64", "int32"),
}


@dataclass(frozen=True)
class InputSpec:
    """One input of a model.

    Attributes:
        name: as in the model.
        dtype: numpy name ("float32", "int64", ...).
        shape: an int where fixed, the symbol's name or None where free; None when unknown.
    """

    name: str
    dtype: str
    shape: tuple[int | str | None, ...] | None

    @property
    def batch_is_free(self) -> bool:
        """Whether axis 0 may have any length."""
        return bool(self.shape) and not isinstance(self.shape[0], int) if self.shape else False

    def __str__(self) -> str:
        dims = (
            "?"
            if self.shape is None
            else "x".join("?" if d is None else str(d) for d in self.shape)
        )
        return f"{self.name}: {self.dtype}[{dims}]"


def input_specs(model: oir.Model) -> tuple[InputSpec, ...]:
    """The inputs a caller must give, in order (overridable initializers are optional, left out).

    Raises:
        ModelError: an input is no tensor, or its dtype is unknown.
    """
    specs = []
    for value in model.graph.inputs:
        if value.name in model.graph.initializers:
            continue
        if value.dtype is None or not isinstance(value.type, oir.TensorType):
            raise ModelError(
                f"input '{value.name}' is {value.type}, not a tensor; qcompile feeds tensors only: "
                "cut the model so that its inputs are tensors"
            )
        shape = None if value.shape is None else tuple(_dim(d) for d in value.shape)
        specs.append(InputSpec(value.name or "", str(np.dtype(value.dtype.numpy())), shape))
    return tuple(specs)


def _dim(dim: int | oir.SymbolicDim) -> int | str | None:
    return dim if isinstance(dim, int) else (str(dim.value) if dim.value is not None else None)


def is_cache(spec: InputSpec) -> bool:
    """Whether an input takes a decoder's keys or values of earlier steps, of which there may be none."""
    name = spec.name.lower()
    rank = -1 if spec.shape is None else len(spec.shape)
    return rank == 4 and spec.dtype.startswith("float") and ("past" in name or "cache" in name)


def fit_feed(
    feed: Mapping[str, npt.ArrayLike], specs: tuple[InputSpec, ...], sample: str
) -> tuple[Feed, tuple[str, ...]]:
    """The feed as the model wants it, and what had to be done to it (missing batch axis, casts).

    Raises:
        CalibrationError: a missing or unknown input, wrong dtype, rank or dimension, NaN or Inf;
            names the sample, the input, what was found and what is needed.
    """
    wanted = {s.name for s in specs}
    missing = [s for s in specs if s.name not in feed]
    unknown = [k for k in feed if k not in wanted]
    if missing:
        raise CalibrationError(
            f"{sample} has no data for input '{missing[0].name}' (found: {', '.join(feed) or 'nothing'}); "
            f"the model needs {'; '.join(str(s) for s in specs)}"
        )
    if unknown:
        raise CalibrationError(
            f"{sample} holds '{unknown[0]}', which is no input of the model; "
            f"its inputs are {'; '.join(str(s) for s in specs)}"
        )
    fitted: Feed = {}
    notes: list[str] = []
    for spec in specs:
        array = np.asarray(feed[spec.name])
        array, done = _fit_dtype(array, spec, sample)
        notes += done
        array, done = _fit_shape(array, spec, sample)
        notes += done
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            kind = "NaN" if np.isnan(array).any() else "Inf"
            raise CalibrationError(
                f"{sample} holds {kind} in input '{spec.name}'; remove or repair this sample"
            )
        fitted[spec.name] = array
    return fitted, tuple(notes)


def _fit_dtype(
    array: npt.NDArray[np.generic], spec: InputSpec, sample: str
) -> tuple[npt.NDArray[np.generic], list[str]]:
    found = str(array.dtype)
    if spec.dtype == "object" and array.dtype.kind in "UO":
        # strings of fixed width: Python objects have no bytes to hash, and are stored as a pickle only
        return array.astype(np.str_), []
    if found == spec.dtype:
        return array, []
    if (found, spec.dtype) in _LOSSLESS_ENOUGH:
        return array.astype(spec.dtype), [f"input '{spec.name}' cast from {found} to {spec.dtype}"]
    needed = "strings" if spec.dtype == "object" else spec.dtype
    raise CalibrationError(
        f"{sample}: input '{spec.name}' is {found}, the model needs {needed}; "
        "save it in that dtype, or give images and --preprocess"
    )


def _fit_shape(
    array: npt.NDArray[np.generic], spec: InputSpec, sample: str
) -> tuple[npt.NDArray[np.generic], list[str]]:
    if spec.shape is None:
        return array, []
    notes = []
    if array.ndim == len(spec.shape) - 1 and (spec.batch_is_free or spec.shape[0] == 1):
        array = array[None]
        notes.append(f"input '{spec.name}': the missing batch axis was added")
    fits = array.ndim == len(spec.shape) and all(
        not isinstance(want, int) or want == have
        for want, have in zip(spec.shape, array.shape, strict=False)
    )
    if not fits:
        found = "x".join(map(str, array.shape)) or "a scalar"
        raise CalibrationError(
            f"{sample}: input '{spec.name}' has shape {found}, the model needs {spec}"
        )
    if 0 in array.shape and not is_cache(spec):
        raise CalibrationError(f"{sample}: input '{spec.name}' is empty (shape {array.shape})")
    return array, notes


def random_feeds(specs: tuple[InputSpec, ...], count: int, seed: int = 0) -> list[Feed]:
    """Feeds that fit the input spec and mean nothing: normal floats, small non-negative integers.

    Free dimensions of one name get one length; a free first axis is 1, others are 8
    (64 for the last two axes of images).
    """
    rng = np.random.default_rng(seed)
    feeds = []
    for _ in range(count):
        symbols: dict[str, int] = {}
        feed: Feed = {}
        for spec in specs:
            shape = [
                d
                if isinstance(d, int)
                else symbols.setdefault(d or f"{spec.name}.{i}", _free(spec, i))
                for i, d in enumerate(spec.shape or ())
            ]
            feed[spec.name] = _random_array(rng, np.dtype(spec.dtype), shape)
        feeds.append(feed)
    return feeds


def _free(spec: InputSpec, axis: int) -> int:
    if axis == 0:
        return 1
    return 64 if spec.shape is not None and len(spec.shape) == 4 and axis >= 2 else _RANDOM_DIM


def _random_array(
    rng: np.random.Generator, dtype: np.dtype[np.generic], shape: list[int]
) -> npt.NDArray[np.generic]:
    if dtype.kind == "f":
        return rng.standard_normal(shape).astype(dtype)
    if dtype.kind == "b":
        return np.ones(shape, dtype)
    if dtype.kind in "iu":
        return rng.integers(0, 2, shape).astype(dtype)
    raise CalibrationError(f"no random data can be made for dtype {dtype}; pass --calibration")
