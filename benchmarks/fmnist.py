"""Top-1 of the Fashion-MNIST networks on the 2,000 test images in models/, as a metric."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

BATCH = 50
TEST = Path(__file__).resolve().parent.parent / "models" / "fmnist_test.npz"

Array = npt.NDArray[np.generic]


def top1(run: Callable[[dict[str, Array]], Mapping[str, Array]]) -> float:
    """The share of images put into the right class."""
    with np.load(TEST) as data:
        images = data["images"].astype(np.float32)[:, None] / np.float32(255)
        labels = data["labels"].astype(np.int64)
    right = 0
    for start in range(0, len(images), BATCH):
        (logits,) = run({"image": images[start : start + BATCH]}).values()
        right += int((np.asarray(logits).argmax(-1) == labels[start : start + BATCH]).sum())
    return right / len(images)
