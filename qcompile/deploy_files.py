"""The folder deploy/: what someone without qcompile needs, and samples with the outputs to expect."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from qcompile.backends.ort import open_session
from qcompile.data.images import save_preview
from qcompile.data.inputs import Feed
from qcompile.job import Job

__all__ = ["SAMPLES", "save_samples", "write_deploy", "write_preview"]

SAMPLES = 4
"""Stored samples."""

OUTPUT_BYTES = 32 << 20
"""Of stored outputs: four windows of a language model's logits were larger than its weights in four bits."""

ELSEWHERE = ("device.py",)
"""Scripts of artifacts whose runtime is on a device."""


def write_deploy(folder: Path, model: Path, feeds: Sequence[Feed]) -> None:
    """Scripts for ONNX Runtime, and samples with the outputs that ``model`` gives here.

    As many of the samples as have outputs of about `OUTPUT_BYTES`, and one at least.
    """
    folder.mkdir()
    for source in sorted((Path(__file__).parent / "deploy").iterdir()):
        if source.suffix in (".py", ".cc", ".md") and source.name not in ELSEWHERE:
            shutil.copyfile(source, folder / source.name)
    session = open_session(model)
    own: list[Feed] = []
    outputs: list[Mapping[str, Any]] = []
    size = 0
    for feed in feeds:
        given = session.given(feed)
        found = session.run_raw(given)
        own.append(given)
        outputs.append(found)
        last = sum(np.asarray(value).nbytes for value in found.values())
        size += last
        if size + last > OUTPUT_BYTES:
            break
    save_samples(folder / "sample_in.npz", own)
    save_samples(folder / "sample_out.npz", outputs)


def save_samples(path: Path, feeds: Sequence[Mapping[str, Any]]) -> None:
    """Arrays as ``sample_tensor`` by number, the tensors' names as JSON beside them."""
    names = list(feeds[0])
    arrays = {
        f"{i}_{j}": np.asarray(feed[name])
        for i, feed in enumerate(feeds)
        for j, name in enumerate(names)
    }
    arrays["names"] = np.frombuffer(json.dumps(names).encode(), np.uint8)
    arrays["count"] = np.array(len(feeds))
    with path.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)


def write_preview(folder: Path, job: Job) -> None:
    """A picture of the first sample, where images were read."""
    if job.options.preprocess is None:
        return
    feed = job.data.calibration.load(0)
    image = next((a for a in feed.values() if a.ndim == 4), None)
    if image is not None and (image.shape[1] in (1, 3) or image.shape[3] in (1, 3)):
        save_preview(image, folder / "preview.png")
