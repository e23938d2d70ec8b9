"""Paths to the models and data in git, for every test."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, settings

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
# A slow or busy machine is no failure; in CI the examples are the same in every run.
settings.register_profile(
    "qcompile",
    deadline=None,
    derandomize="CI" in os.environ,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("qcompile")

FMNIST = ("fmnist_cnn", "fmnist_dwcnn", "fmnist_vit", "fmnist_lstm")


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository."""
    return ROOT


@pytest.fixture(scope="session")
def models_dir() -> Path:
    """The folder with the models and their data."""
    return ROOT / "models"


@pytest.fixture(scope="session")
def zoo(models_dir: Path) -> dict[str, Any]:
    """The contents of zoo.toml."""
    return tomllib.loads((models_dir / "zoo.toml").read_text(encoding="utf-8"))


@pytest.fixture(scope="session")
def model_path(models_dir: Path) -> Callable[[str], Path]:
    """The path of a model by its name: ``model_path("fmnist_cnn")``."""
    return lambda name: models_dir / f"{name}.onnx"


@pytest.fixture(scope="session")
def dwcnn(models_dir: Path) -> Path:
    """The depthwise network: the smallest real model here."""
    return models_dir / "fmnist_dwcnn.onnx"


@pytest.fixture(scope="session", params=FMNIST)
def fmnist_model(request: pytest.FixtureRequest, models_dir: Path) -> Path:
    """Each of the four Fashion-MNIST networks in turn."""
    return models_dir / f"{request.param}.onnx"


def _images(path: Path) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    with np.load(path) as data:
        images = data["images"].astype(np.float32)[:, None] / np.float32(255)
        return images, data["labels"].astype(np.int64)


@pytest.fixture(scope="session")
def fmnist_calibration(models_dir: Path) -> npt.NDArray[np.float32]:
    """The 256 calibration images, ``(256, 1, 28, 28)`` in 0..1, as the networks take them."""
    return _images(models_dir / "fmnist_calibration.npz")[0]


@pytest.fixture(scope="session")
def fmnist_test(
    models_dir: Path,
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """The 2,000 test images ``(2000, 1, 28, 28)`` in 0..1 and their labels."""
    return _images(models_dir / "fmnist_test.npz")


@pytest.fixture(scope="session")
def calibration_feeds(
    fmnist_calibration: npt.NDArray[np.float32],
) -> list[dict[str, npt.NDArray[np.float32]]]:
    """The calibration images as eight feeds of 32."""
    return [{"image": fmnist_calibration[i : i + 32]} for i in range(0, 256, 32)]


@pytest.fixture(scope="session")
def single_feeds(
    fmnist_calibration: npt.NDArray[np.float32],
) -> list[dict[str, npt.NDArray[np.float32]]]:
    """The first 32 calibration images, a feed each."""
    return [{"image": image[None]} for image in fmnist_calibration[:32]]
