"""What each matrix in few bits does to the output: measured, and kept for a compile that goes on.

Measured before anything is rounded with data, with nearest integers: then the matrices on which 8 bits are
best spent have them when the others are rounded, and what is rounded behind them answers to what they are.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from qcompile.disturbance import disturbances, divergence, relative_error
from qcompile.job import Job
from qcompile.language import Language
from qcompile.round_weights import Rounded, round_alone
from qcompile.weights_plan import MatrixChoice

__all__ = ["disturbed", "disturbed_by_nearest"]

Advance = Callable[[float, float | None], None]

FILE = "disturbances.json"


def disturbed(
    job: Job,
    few: Mapping[str, Rounded],
    choices: Sequence[MatrixChoice],
    language: Language | None,
    advance: Advance,
) -> dict[str, float]:
    """Of each matrix that may get 8 bits, as it was rounded; by initializer name.

    Where float runs in parts, a pass for each matrix is out of reach: its own layer's error stands in.
    """
    if job.in_parts() is not None:
        return {n: r.error or 10 ** (-r.sqnr_db / 10) for n, r in few.items()}
    values = {c.matrix.name: few[c.matrix.name].values for c in choices if c.may_rise}
    return _measured(job, choices, values, language, advance)


def disturbed_by_nearest(
    job: Job,
    choices: Sequence[MatrixChoice],
    language: Language | None,
    folder: Path,
    advance: Advance,
) -> dict[str, float]:
    """The same before anything is rounded, with nearest integers; read from ``folder`` where it lies there.

    Nothing where float runs in parts.
    """
    if job.in_parts() is not None:
        return {}
    file = folder / FILE
    if file.is_file():
        return {str(k): float(v) for k, v in json.loads(file.read_text("utf-8")).items()}

    def nearest(choice: MatrixChoice) -> npt.NDArray[np.float32]:
        return round_alone(choice).values()

    values = {c.matrix.name: partial(nearest, c) for c in choices if c.may_rise}
    found = _measured(job, choices, values, language, advance)
    draft = file.with_suffix(".part")
    draft.write_text(json.dumps(found), encoding="utf-8", newline="\n")
    draft.replace(file)
    return found


def _measured(
    job: Job,
    choices: Sequence[MatrixChoice],
    values: Mapping[str, Callable[[], npt.NDArray[np.float32]]],
    language: Language | None,
    advance: Advance,
) -> dict[str, float]:
    if not values:
        return {}
    matrices = {c.matrix.name: c.matrix for c in choices}
    return disturbances(
        job.prepared.model,
        {name: (matrices[name], made) for name, made in values.items()},
        job.data.selection(),
        relative_error if language is None else divergence(language.logits),
        threads=job.options.threads,
        custom_ops=job.options.custom_ops,
        advance=advance,
    )
