"""What versus.py compiles: models with their data and metric, and the samples held out from all tools."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from qcompile.data.inputs import Feed, input_specs
from qcompile.data.sources import open_feeds
from qcompile.ir.load import load_model
from qcompile.sizes import side_files

HERE = Path(__file__).resolve().parent
MODELS = HERE.parent / "models"
FMNIST = ("fmnist_cnn", "fmnist_dwcnn", "fmnist_vit", "fmnist_lstm")
HELD = (4, 16)


@dataclass(frozen=True)
class Case:
    """A model to compile.

    Attributes:
        name: in the table.
        model: the float model.
        data: where samples come from, as --calibration takes it; None: random ones.
        metric: as --metric takes it.
    """

    name: str
    model: Path
    data: Any = None
    metric: str | None = None


def parse_cases(texts: Sequence[str]) -> list[Case]:
    """``MODEL=DATA[=METRIC]``; a model is named after its file, and its folder where two are alike."""
    parts = [text.split("=") for text in texts]
    for text, part in zip(texts, parts, strict=True):
        if len(part) not in (2, 3) or not all(part):
            raise SystemExit(f"--models '{text}' is no MODEL=DATA or MODEL=DATA=METRIC")
    paths = [Path(part[0]) for part in parts]
    stems = [path.stem for path in paths]
    return [
        Case(
            path.stem if stems.count(path.stem) == 1 else f"{path.parent.name}/{path.stem}",
            path,
            part[1],
            part[2] if len(part) == 3 else None,
        )
        for path, part in zip(paths, parts, strict=True)
    ]


def fmnist_feeds() -> list[Feed]:
    """Calibration images one by one: latency is that of a single image."""
    with np.load(MODELS / "fmnist_calibration.npz") as data:
        images = data["images"][:80].astype(np.float32)[:, None] / np.float32(255)
    return [{"image": image[None]} for image in images]


def default_cases(fetched: Path) -> list[Case]:
    """The models in git, with their data; those that fetch.py brought, on random data."""
    metric = f"{HERE / 'fmnist.py'}:top1"
    cases = [Case(name, MODELS / f"{name}.onnx", fmnist_feeds, metric) for name in FMNIST]
    return cases + [Case(file.stem, file) for file in sorted(fetched.glob("*.onnx"))]


def split(case: Case, folder: Path) -> tuple[Path, list[Feed]]:
    """Calibration samples as .npz files in a folder, and the held-out ones."""
    data = case.data() if callable(case.data) else case.data
    feeds = open_feeds(data, input_specs(load_model(case.model).model))
    held = max(HELD[0], min(HELD[1], len(feeds) // 5))
    step = max(1, len(feeds) // held)
    out = {i for i in range(0, len(feeds), step) if i // step < held}
    folder.mkdir()
    kept: list[Feed] = []
    for i, feed in enumerate(feeds):
        if i in out:
            kept.append(feed)
        if i not in out or len(feeds) < 2 * HELD[0]:
            with (folder / f"{i:05d}.npz").open("wb") as file:
                np.savez(file, **feed)  # type: ignore[arg-type]
    return folder, kept


def copy_model(model: Path, folder: Path) -> Path:
    """A copy with its external data: some tools write inferred shapes into the file they are given."""
    copy = folder / model.name
    shutil.copyfile(model, copy)
    for side in side_files(model):
        target = folder / side
        if folder.resolve() in target.resolve().parents:  # beside the model, as ONNX asks
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(model.parent / side, target)
    return copy
