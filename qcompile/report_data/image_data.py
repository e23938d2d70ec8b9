"""A picture inside a text file."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

__all__ = ["image_data", "map_data"]

WIDEST, HIGHEST = 360, 160
"""Pixels of a drawn image."""


def image_data(image: Image.Image) -> str:
    """A picture as a data URL, shrunk to what a page shows."""
    ratio = min(1.0, WIDEST / image.width, HIGHEST / image.height)
    if ratio < 1.0:
        size = max(1, round(image.width * ratio)), max(1, round(image.height * ratio))
        image = image.resize(size, Image.Resampling.BILINEAR)
    file = io.BytesIO()
    image.save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def map_data(values: npt.NDArray[Any], like: npt.NDArray[Any]) -> str:
    """A picture of (height, width) values; both of a pair are stretched as ``like`` is."""
    low, high = float(np.nanmin(like)), float(np.nanmax(like))
    scaled = (np.nan_to_num(values.astype(np.float64)) - low) / ((high - low) or 1.0)
    return image_data(Image.fromarray((scaled.clip(0, 1) * 255).astype(np.uint8)))
