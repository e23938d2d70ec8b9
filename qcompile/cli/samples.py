"""The samples that a command runs on: the user's, else an artifact's own, else random ones."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from qcompile.data.sources import FeedSet, open_feeds
from qcompile.subject import Subject, open_specs, stored_samples

__all__ = ["find_samples"]


def find_samples(
    subjects: Sequence[Subject],
    calibration: str | None,
    preprocess: str | None,
    most: int,
) -> FeedSet:
    """Samples for the first subject's inputs, at most ``most``.

    Raises:
        CalibrationError: data that do not fit.
    """
    specs = open_specs(subjects[0].model)
    source: object = calibration
    described = None
    if calibration is None:
        for subject in subjects:
            stored = stored_samples(subject.path) if subject.artifact is not None else []
            if stored:
                source, described = stored, Path(subject.path.name, "deploy", "sample_in.npz")
                break
    feeds = open_feeds(source, specs, preprocess=preprocess)
    if described is not None:
        feeds.description = f"{len(feeds)} samples stored in {described.as_posix()}"
    return feeds.subset(range(min(len(feeds), most)))
