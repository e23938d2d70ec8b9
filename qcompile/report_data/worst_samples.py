"""The held-back samples on which the artifact is farthest from float: what went in, and both outputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from qcompile.backends.ort import Session, open_session
from qcompile.data.images import parse_preprocess, picture
from qcompile.data.inputs import Feed
from qcompile.data.text import text_decoder
from qcompile.job import Job
from qcompile.report_data.image_data import image_data
from qcompile.report_data.readings import Reader
from qcompile.report_data.show import parse_show, show_by_function
from qcompile.verdict import GateResult

__all__ = ["worst_samples"]

SAMPLES = 4
OUTPUTS = 4


def worst_samples(
    job: Job,
    artifact: Path,
    gate: GateResult,
    config: Mapping[str, str] | None,
    exact: Session | None = None,
) -> list[dict[str, Any]]:
    """At most `SAMPLES` rows, the worst first: name, score, image where there is one, outputs.

    Args:
        job: what is compiled.
        artifact: its file.
        gate: the verdict on it.
        config: session options under which it is compared.
        exact: what the outputs must equal, where it stands open.

    Raises:
        ModelError: a model does not run.
        OptionError: the function of ``--show`` does not do.
    """
    chosen = _chosen(gate)
    if not chosen:
        return []
    options: dict[str, Any] = {
        "threads": job.options.threads,
        "custom_ops": job.options.custom_ops,
    }
    exact = exact or job.open_reference()
    session = open_session(artifact, config=config, **options)
    held = job.data.held
    asked = parse_show(job.options.show)
    preset = job.options.preprocess or ""
    tokenizer = job.options.tokenizer
    decode = None if tokenizer is None else text_decoder(tokenizer)
    reader = Reader(dict(job.prepared.loaded.model.metadata_props), preset, asked, decode)
    rows = []
    for name, score in chosen:
        if name not in held.names:
            continue
        feed = held.load(held.names.index(name))
        wanted, got = exact.run(feed), session.run(feed)
        if asked.function is not None:
            read = show_by_function(asked.function, (wanted, got), feed, _pixels(feed))
            shown = [{"name": "outputs", "shape": ""} | read]
        else:
            shown = [
                {"name": key, "shape": "x".join(map(str, np.shape(value)))}
                | reader.read(np.asarray(value), np.asarray(got[key]), _pixels(feed))
                for key, value in wanted.items()
                if isinstance(value, np.ndarray) and isinstance(got.get(key), np.ndarray)
            ]
        rows.append(
            {
                "name": name,
                "score": round(score, 3),
                "image": _image(job, feed),
                "outputs": [one for one in shown if len(one) > 2][:OUTPUTS],
            }
        )
    return rows


def _chosen(gate: GateResult) -> list[tuple[str, float]]:
    """Samples by their least score over the outputs of one kind, floats if there are any."""
    judged = [o for o in gate.outputs if not o.zero]
    of_kind = [o for o in judged if o.kind == "float"] or judged
    least: dict[str, float] = {}
    for output in of_kind:
        for one in output.worst:
            least[one.sample] = min(one.score, least.get(one.sample, one.score))
    return sorted(least.items(), key=lambda item: item[1])[:SAMPLES]


def _picture(feed: Feed) -> npt.NDArray[np.generic] | None:
    """The first input that looks like one image, or a few of them."""
    for value in feed.values():
        array = np.asarray(value)
        if array.ndim != 4 or array.dtype.kind not in "fiu":
            continue
        channels_last = array.shape[3] in (1, 3) and array.shape[1] not in (1, 3)
        sides = array.shape[1:3] if channels_last else array.shape[2:]
        if (channels_last or array.shape[1] in (1, 3)) and min(sides) >= 8:
            return array
    return None


def _pixels(feed: Feed) -> tuple[int, int] | None:
    """Height and width of the input image."""
    array = _picture(feed)
    if array is None:
        return None
    shape: Sequence[int] = array.shape[2:] if array.shape[1] in (1, 3) else array.shape[1:3]
    return int(shape[0]), int(shape[1])


def _image(job: Job, feed: Feed) -> str | None:
    array = _picture(feed)
    if array is None:
        return None
    recipe = job.options.preprocess
    swap = recipe is not None and parse_preprocess(recipe).color == "bgr"
    return image_data(picture(array, swap))
