"""Calibration samples of the example: Fashion-MNIST images, preprocessed as in production."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

IMAGES = Path(__file__).resolve().parents[2] / "models" / "fmnist_calibration.npz"


def samples() -> Iterator[dict[str, npt.NDArray[np.float32]]]:
    """Yield one feed a sample: {input name: array}."""
    with np.load(IMAGES) as data:
        images = data["images"][:64].astype(np.float32) / np.float32(255)
    for image in images:
        yield {"image": image[None, None]}
