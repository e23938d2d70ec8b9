"""Task metrics: the user's own function, or a built-in one over evaluation data and labels.

A metric is ``fn(run) -> float`` with ``run(feed) -> {output name: array}``; higher is better unless
``fn.lower_is_better`` is True. It is called once with the float model and once with the artifact.
"""

from __future__ import annotations

import csv
import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from qcompile.data.inputs import Feed, InputSpec
from qcompile.data.script import load_function
from qcompile.data.sources import FeedSet, open_feeds
from qcompile.data.text import text_recipe
from qcompile.ir.errors import CalibrationError, OptionError
from qcompile.options import Options

__all__ = ["BUILT_IN", "Metric", "Run", "make_metric"]

Outputs = Mapping[str, npt.NDArray[np.generic]]
Run = Callable[[Feed], Outputs]


@dataclass(frozen=True)
class Metric:
    """A named score.

    Attributes:
        name: for reports ("top1", "eval.py:f1").
        fn: run -> score.
        lower_is_better: direction.
    """

    name: str
    fn: Callable[[Run], float]
    lower_is_better: bool = False


def _first(outputs: Outputs) -> npt.NDArray[np.float64]:
    """The first output, as float64."""
    return np.asarray(next(iter(outputs.values())), np.float64)


def _top1(run: Run, feeds: FeedSet, labels: Sequence[str]) -> float:
    right = total = 0
    for feed, label in zip(feeds, labels, strict=True):
        picked = _first(run(feed))
        picked = picked.reshape(-1, picked.shape[-1]).argmax(-1)
        wanted = np.array([int(t) for t in label.split()])
        if wanted.size != picked.size:
            raise CalibrationError(
                f"top1: {picked.size} predictions for {wanted.size} labels in one sample; "
                "labels.csv needs one class number a row of the first output"
            )
        right += int((picked == wanted).sum())
        total += picked.size
    return right / total


def _ppl(run: Run, feeds: FeedSet, _: Sequence[str]) -> float:
    loss, count = 0.0, 0
    for feed in feeds:
        ids = next(v for v in feed.values() if np.issubdtype(v.dtype, np.integer)).astype(np.int64)
        logits = _first(run(feed))[:, :-1]
        logits = logits - logits.max(-1, keepdims=True)
        log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        loss -= float(np.take_along_axis(log_p, ids[:, 1:, None], -1).sum())
        count += ids[:, 1:].size
    return float(np.exp(loss / max(1, count)))


def _cer(run: Run, feeds: FeedSet, labels: Sequence[str]) -> float:
    """Greedy CTC decoding (blank 0, character k is code point labels' own); labels are index lists."""
    wrong = total = 0
    for feed, label in zip(feeds, labels, strict=True):
        path = _first(run(feed)).argmax(-1).reshape(-1)
        read = [int(k) for i, k in enumerate(path) if k and (i == 0 or k != path[i - 1])]
        wanted = [int(t) for t in label.split()]
        wrong += _edits(read, wanted)
        total += len(wanted)
    return wrong / max(1, total)


def _edits(a: Sequence[int], b: Sequence[int]) -> int:
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        previous, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            previous, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, previous + (x != y))
    return row[-1]


BUILT_IN: dict[str, tuple[Callable[[Run, FeedSet, Sequence[str]], float], bool, bool]] = {
    "top1": (_top1, False, True),
    "cer": (_cer, True, True),
    "ppl": (_ppl, True, False),
}
"""name -> (function, lower is better, needs labels). cosine, sqnr and kl are always in the report."""


def make_metric(
    options: Options,
    specs: tuple[InputSpec, ...],
    calibration: FeedSet,
    calibrated: bool = True,
) -> Metric | None:
    """The metric asked for, or None; with ``calibrated`` its data must differ from ``calibration``.

    Raises:
        OptionError: unknown name (with the nearest), or data that a built-in needs are missing.
        CalibrationError: evaluation data equal the calibration data, or labels do not fit.
    """
    asked = options.metric
    if asked is None:
        return None
    if callable(asked):
        name = getattr(asked, "__name__", "metric")
        return Metric(
            name, asked, _direction(options, bool(getattr(asked, "lower_is_better", False)))
        )
    script, _, function = asked.rpartition(":")
    if script.endswith(".py"):
        needed = "a function (run) -> float"
        loaded = load_function(Path(script), function, "--metric", needed, OptionError)
        return Metric(
            function, loaded, _direction(options, bool(getattr(loaded, "lower_is_better", False)))
        )
    if asked not in BUILT_IN:
        near = difflib.get_close_matches(asked, BUILT_IN, n=1)
        raise OptionError(
            f"--metric '{asked}' is unknown; use {', '.join(BUILT_IN)} or file.py:function"
            + (f"; did you mean {near[0]}?" if near else "")
        )
    fn, lower, needs_labels = BUILT_IN[asked]
    if options.eval_data is None or (needs_labels and options.labels is None):
        needed = "--eval-data and --labels" if needs_labels else "--eval-data"
        raise OptionError(f"--metric {asked} needs {needed}")
    feeds = open_feeds(
        options.eval_data,
        specs,
        preprocess=options.preprocess,
        option="--eval-data",
        text=text_recipe(options.tokenizer, options.sequence),
    )
    if calibrated and feeds.sha256() == calibration.sha256():
        raise CalibrationError(
            "--eval-data holds the calibration data; a score on data that were calibrated on means little: "
            "give other samples"
        )
    labels = _labels(options.labels, feeds) if options.labels is not None else []
    return Metric(asked, lambda run: fn(run, feeds, labels), _direction(options, lower))


def _direction(options: Options, default: bool) -> bool:
    return default if options.metric_direction is None else options.metric_direction == "min"


def _labels(path: Path | None, feeds: FeedSet) -> list[str]:
    """Labels in the order of the samples, from a CSV of "file name,label" (or one label a line)."""
    if path is None:
        return []
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = [r for r in csv.reader(file) if r]
    except (OSError, UnicodeDecodeError, csv.Error) as e:
        raise CalibrationError(f"--labels '{path}' cannot be read: {e}") from e
    if rows and len(rows[0]) == 1:
        if len(rows) != len(feeds):
            raise CalibrationError(
                f"--labels '{path}' has {len(rows)} rows for {len(feeds)} samples"
            )
        return [r[0] for r in rows]
    by_name = {r[0]: r[1] for r in rows}
    missing = [n for n in feeds.names if n not in by_name]
    if missing:
        raise CalibrationError(f"--labels '{path}' has no row for sample '{missing[0]}'")
    return [by_name[n] for n in feeds.names]
