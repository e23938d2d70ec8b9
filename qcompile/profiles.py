"""Shapes that an artifact must serve: least, typical and largest of every dynamic input.

They are those of the samples, unless ``--shapes`` says otherwise, as in
``image=1x3x320x320:1x3x640x640:1x3x960x960``: one shape alone stands for all three, and ``image=`` may
be left out where the model has one input.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from qcompile.backends.trt import Profile
from qcompile.data.inputs import InputSpec
from qcompile.ir.errors import OptionError

__all__ = ["asked_shapes", "shape_profile"]

Shape = tuple[int, ...]

_WORDS = ("least", "typical", "largest")
_SHAPE = re.compile(r"\d+(x\d+)*")


def shape_profile(feeds: Sequence[Mapping[str, Shape]]) -> Profile:
    """Least, typical (most frequent) and largest shape of every input over the samples."""
    found: dict[str, tuple[Shape, Shape, Shape]] = {}
    for name in feeds[0] if feeds else ():
        shapes = [feed[name] for feed in feeds]
        low = tuple(min(dims) for dims in zip(*shapes, strict=True))
        high = tuple(max(dims) for dims in zip(*shapes, strict=True))
        found[name] = (low, max(shapes, key=shapes.count), high)
    return found


def asked_shapes(texts: Sequence[str], inputs: Sequence[InputSpec]) -> Profile:
    """What ``--shapes`` asks, by input name, and for inputs whose free axes are then known by name.

    Raises:
        OptionError: unreadable, of no input, of another rank, against a fixed dimension, or not in
            the order least, typical, largest.
    """
    known = {spec.name: spec for spec in inputs}
    found: dict[str, tuple[Shape, Shape, Shape]] = {}
    for text in texts:
        name, separator, shapes = text.rpartition("=")
        if not separator:
            if len(known) != 1:
                raise OptionError(
                    f"--shapes {text}: the model has the inputs {', '.join(known)}; write NAME={text}"
                )
            name = next(iter(known))
        if name not in known:
            raise OptionError(
                f"--shapes {text}: the model has no input '{name}'; it has {', '.join(known)}"
            )
        found[name] = _read(text, shapes, known[name])
    return _bind(found, inputs)


def _bind(found: Profile, inputs: Sequence[InputSpec]) -> Profile:
    """With the inputs that follow from those asked for, since their free axes have the same names."""
    bound: dict[str, tuple[int, ...]] = {}
    for spec in inputs:
        for axis, dim in enumerate(spec.shape or ()):
            if spec.name in found and isinstance(dim, str):
                bound.setdefault(dim, tuple(shape[axis] for shape in found[spec.name]))
    whole = dict(found)
    for spec in inputs:
        if spec.name in found or all(isinstance(d, int) for d in spec.shape or ()):
            continue
        if all(isinstance(d, int) or d in bound for d in spec.shape or ()):
            low, typical, high = (
                tuple(d if isinstance(d, int) else bound[str(d)][i] for d in spec.shape or ())
                for i in range(3)
            )
            whole[spec.name] = (low, typical, high)
    return whole


def _read(text: str, shapes: str, spec: InputSpec) -> tuple[Shape, Shape, Shape]:
    parts = shapes.split(":")
    if len(parts) not in (1, 3) or not all(_SHAPE.fullmatch(p) for p in parts):
        raise OptionError(
            f"--shapes {text}: needed is MIN:OPT:MAX, each like 1x3x640x640, or one such shape"
        )
    dims = [tuple(int(d) for d in part.split("x")) for part in parts]
    low, typical, high = dims if len(dims) == 3 else dims * 3
    for word, shape in zip(_WORDS, (low, typical, high), strict=True):
        if spec.shape is None:
            continue
        fits = len(shape) == len(spec.shape) and all(
            not isinstance(d, int) or d == s for s, d in zip(shape, spec.shape, strict=True)
        )
        if not fits:
            raise OptionError(
                f"--shapes {text}: the {word} shape {'x'.join(map(str, shape))} does not fit input {spec}"
            )
    ordered = len(low) == len(typical) == len(high) and all(
        a <= b <= c for a, b, c in zip(low, typical, high, strict=True)
    )
    if not ordered:
        raise OptionError(
            f"--shapes {text}: every dimension must grow from the least over the typical to the largest"
        )
    return low, typical, high
