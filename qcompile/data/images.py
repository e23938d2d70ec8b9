"""From an image file to a model's input: named presets, or a recipe in words."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from qcompile.data.inputs import InputSpec
from qcompile.ir.errors import CalibrationError, OptionError

__all__ = ["IMAGE_SUFFIXES", "PRESETS", "Preprocess", "parse_preprocess", "picture", "save_preview"]

IMAGE_SUFFIXES = frozenset(
    {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm"}
)

_IMAGENET = "mean=0.485/0.456/0.406,std=0.229/0.224/0.225"
PRESETS: dict[str, str] = {
    "imagenet": f"resize=256,crop=224,rgb,scale=1/255,{_IMAGENET},layout=nchw",
    "imagenet-tf": "resize=256,crop=224,rgb,scale=1/127.5,mean=1,layout=nhwc",
    "imagenet-caffe": "resize=256,crop=224,bgr,mean=103.939/116.779/123.68,layout=nchw",
    "unit": "rgb,scale=1/255",
    "signed-unit": "rgb,scale=1/127.5,mean=1",
    "raw": "rgb",
    "gray": "gray,scale=1/255",
    "yolo": "letterbox=fit,rgb,scale=1/255,layout=nchw",
    "ppocr-det": f"multiple=32,bgr,scale=1/255,{_IMAGENET},layout=nchw",
    "ppocr-rec": "height=48,minwidth=320,bgr,scale=1/127.5,mean=1,layout=nchw",
}
"""Named recipes. Order of acts: resize, crop, colour, scale, minus mean, divided by std, layout."""


@dataclass(frozen=True)
class Preprocess:
    """A recipe; sizes in pixels. Fixed height and width of the input decide where nothing else does.

    Attributes:
        resize: shorter side ("256"), or height and width.
        letterbox: keep the aspect and pad with grey to the input's size ("fit") or to a size.
        height: scale to this height keeping the aspect (text lines).
        minwidth: pad with zeros behind the normalisation up to this width.
        multiple: scale both sides to the nearest multiple.
        crop: centre crop, one side or height and width.
        color: "rgb", "bgr" or "gray".
        scale: multiplied to the 0..255 values.
        mean: subtracted after ``scale``, one value or one per channel.
        std: divided by at the end.
        layout: "nchw", "nhwc", or "" = from the input's shape.
        text: as the user wrote it.
    """

    resize: tuple[int, ...] = ()
    letterbox: tuple[int, ...] | None = None
    height: int = 0
    minwidth: int = 0
    multiple: int = 0
    crop: tuple[int, ...] = ()
    color: str = "rgb"
    scale: float = 1.0
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    layout: str = ""
    text: str = ""

    def load(self, path: Path, spec: InputSpec) -> npt.NDArray[np.generic]:
        """The image as one sample (1, C, H, W) or (1, H, W, C) in the input's dtype.

        Raises:
            CalibrationError: unreadable image, or a size that the input does not take.
        """
        try:
            with Image.open(path) as opened:
                image = opened.convert("L" if self.color == "gray" else "RGB")
        except (UnidentifiedImageError, OSError, ValueError) as e:
            raise CalibrationError(f"'{path}' cannot be read as an image: {e}") from e
        layout = self.layout or _layout(spec)
        pixels = np.asarray(self._sized(image, _wanted_size(spec, layout)))
        if self.color == "gray":
            pixels = pixels[..., None]
        elif self.color == "bgr":
            pixels = pixels[..., ::-1]
        if np.dtype(spec.dtype).kind in "iu":
            array: npt.NDArray[np.generic] = pixels.astype(spec.dtype)
        else:
            real = pixels.astype(np.float32) * np.float32(self.scale)
            real = (real - np.asarray(self.mean, np.float32)) / np.asarray(self.std, np.float32)
            if self.minwidth > real.shape[1]:
                real = np.pad(real, ((0, 0), (0, self.minwidth - real.shape[1]), (0, 0)))
            array = real.astype(spec.dtype)
        return np.ascontiguousarray((array.transpose(2, 0, 1) if layout == "nchw" else array)[None])

    def _sized(self, image: Image.Image, wanted: tuple[int, int] | None) -> Image.Image:
        width, height = image.size
        bilinear = Image.Resampling.BILINEAR
        if self.letterbox is not None:
            size = _pair(self.letterbox) if self.letterbox else wanted
            return image if size is None else _letterboxed(image, size)
        if self.height:
            return image.resize(
                (max(8, round(width * self.height / height)), self.height), bilinear
            )
        if self.multiple:
            m = self.multiple
            return image.resize(
                (max(m, round(width / m) * m), max(m, round(height / m) * m)), bilinear
            )
        if len(self.resize) == 1:
            ratio = self.resize[0] / min(width, height)
            image = image.resize((round(width * ratio), round(height * ratio)), bilinear)
        elif self.resize:
            image = image.resize((self.resize[1], self.resize[0]), bilinear)
        if self.crop:
            crop_h, crop_w = _pair(self.crop)
            left, top = (image.size[0] - crop_w) // 2, (image.size[1] - crop_h) // 2
            image = image.crop((left, top, left + crop_w, top + crop_h))
        if not self.resize and not self.crop and wanted is not None:
            image = image.resize((wanted[1], wanted[0]), bilinear)
        return image


def _pair(size: tuple[int, ...]) -> tuple[int, int]:
    return (size[0], size[0]) if len(size) == 1 else (size[0], size[1])


def _letterboxed(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    height, width = size
    ratio = min(width / image.size[0], height / image.size[1])
    inner = image.resize(
        (max(1, round(image.size[0] * ratio)), max(1, round(image.size[1] * ratio))),
        Image.Resampling.BILINEAR,
    )
    canvas = Image.new(image.mode, (width, height), 114 if image.mode == "L" else (114, 114, 114))
    canvas.paste(inner, ((width - inner.size[0]) // 2, (height - inner.size[1]) // 2))
    return canvas


def _layout(spec: InputSpec) -> str:
    shape = spec.shape or ()
    return (
        "nhwc"
        if len(shape) == 4 and shape[3] in (1, 3, 4) and shape[1] not in (1, 3, 4)
        else "nchw"
    )


def _wanted_size(spec: InputSpec, layout: str) -> tuple[int, int] | None:
    shape = spec.shape or ()
    height, width = (shape[2], shape[3]) if layout == "nchw" else (shape[1], shape[2])
    return (height, width) if isinstance(height, int) and isinstance(width, int) else None


def _number(text: str) -> float:
    top, _, bottom = text.partition("/")
    return float(top) / float(bottom) if bottom else float(top)


def _numbers(text: str) -> tuple[float, ...]:
    return tuple(float(t) for t in text.split("/"))


def _sizes(text: str) -> tuple[int, ...]:
    return tuple(int(t) for t in text.lower().split("x"))


_READERS: dict[str, Callable[[str], object]] = {
    "resize": _sizes,
    "crop": _sizes,
    "letterbox": lambda t: () if t == "fit" else _sizes(t),
    "height": int,
    "minwidth": int,
    "multiple": int,
    "scale": _number,
    "mean": _numbers,
    "std": _numbers,
    "layout": str,
}


def parse_preprocess(text: str) -> Preprocess:
    """Read a preset's name or a recipe such as "resize=256,crop=224,rgb,scale=1/255,layout=nchw".

    Several values are separated by "/" (mean=0.485/0.456/0.406) or by further commas.

    Raises:
        OptionError: unknown word or unreadable value; lists what there is.
    """
    recipe = PRESETS.get(text, text)
    values: dict[str, object] = {}
    last = ""
    for word in recipe.split(","):
        key, _, value = word.strip().partition("=")
        if key in ("rgb", "bgr", "gray") and not value:
            values["color"] = key
            continue
        if last in ("mean", "std") and not value and _is_number(key):
            values[last] = (*_as_tuple(values[last]), float(key))
            continue
        reader = _READERS.get(key)
        try:
            if reader is None or not value:
                raise ValueError(key)
            values[key] = reader(value)
        except (ValueError, ZeroDivisionError) as e:
            raise OptionError(
                f"--preprocess: '{word.strip()}' is not understood; presets: {', '.join(PRESETS)}; "
                f"words: rgb, bgr, gray, {', '.join(f'{k}=' for k in _READERS)}"
            ) from e
        last = key
    if values.get("layout", "nchw") not in ("nchw", "nhwc"):
        raise OptionError(f"--preprocess: layout={values['layout']} is unknown; use nchw or nhwc")
    known = {f.name for f in fields(Preprocess)}
    made = Preprocess(text=text)
    return replace(made, **{k: v for k, v in values.items() if k in known})  # type: ignore[arg-type]


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _as_tuple(value: object) -> tuple[float, ...]:
    return value if isinstance(value, tuple) else ()


def picture(feed: npt.NDArray[np.generic], swap: bool = False) -> Image.Image:
    """What the model sees, channels stretched to 0..255: wrong colours show at once.

    Args:
        feed: one sample (1, C, H, W) or (1, H, W, C) with 1 or 3 channels.
        swap: its channels are blue, green, red.
    """
    sample = np.asarray(feed[0], np.float32)
    if sample.shape[0] in (1, 3):
        sample = sample.transpose(1, 2, 0)
    low, high = float(sample.min()), float(sample.max())
    stretched = np.clip((sample - low) / ((high - low) or 1.0) * 255, 0, 255).astype(np.uint8)
    if stretched.shape[2] == 1:
        return Image.fromarray(stretched[..., 0])
    return Image.fromarray(np.ascontiguousarray(stretched[..., ::-1]) if swap else stretched)


def save_preview(feed: npt.NDArray[np.generic], path: Path) -> None:
    """Write ``picture(feed)`` as a .png."""
    picture(feed).save(path)
