"""What is done for accuracy beyond rounding: each technique can be switched off alone."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from qcompile.ir.errors import OptionError

__all__ = ["ALL", "TECHNIQUES", "parse_techniques"]

TECHNIQUES = {
    "fold-scales": "channels of activations evened out, the scales folded into neighbouring layers",
    "smooth-quant": "outliers in what a MatMul reads moved into its weights",
    "smooth-branches": "the same by a division in front of the MatMul where nothing else takes the scale",
    "weight-ranges": "ranges of weights by output error instead of the largest weight",
    "learned-rounding": "weights rounded so that the layer's output errs least",
    "bias-correction": "the mean error of a layer taken away by its bias",
    "range-choice": "ranges of activations by estimators, chosen by the error at the output; "
    "without it minima and maxima",
    "refit": "weights and biases fitted to what a layer reads once all before it is quantized",
}
"""name -> what it does. Each is kept only where it lowers the error on held-back samples."""

ALL = tuple(TECHNIQUES)


def parse_techniques(given: object) -> tuple[str, ...]:
    """The techniques named, in the order of ``TECHNIQUES``.

    Args:
        given: "all", "none", names with commas between them, or a list of names; "-name" takes one
            away from all.

    Raises:
        OptionError: an unknown name (with the nearest), or names to have beside names to leave out.

    >>> parse_techniques("refit,fold-scales")
    ('fold-scales', 'refit')
    """
    if isinstance(given, str):
        names = [part.strip() for part in given.split(",") if part.strip()]
    elif isinstance(given, Iterable):
        names = [part.strip() for one in given for part in str(one).split(",") if part.strip()]
    else:
        raise OptionError(f"--techniques {given!r} is no text; use all, none or names with commas")
    if names in (["all"], ["none"]):
        return ALL if names == ["all"] else ()
    left_out = {name.removeprefix("-") for name in names if name.startswith("-")}
    asked = {name for name in names if not name.startswith("-")}
    for name in (*asked, *left_out):
        if name not in TECHNIQUES:
            near = difflib.get_close_matches(name, (*ALL, "all", "none"), n=1, cutoff=0.4)
            hint = f"; did you mean {near[0]}?" if near else "."
            raise OptionError(
                f"--techniques: '{name}' is unknown{hint} Use all, none, or {', '.join(ALL)}"
            )
    if asked and left_out:
        raise OptionError(
            f"--techniques names what to have ({', '.join(sorted(asked))}) and what to leave out "
            f"({', '.join(sorted(left_out))}); give only one kind"
        )
    chosen = asked or set(ALL) - left_out
    return tuple(name for name in ALL if name in chosen)
