"""`qcompile demo`: a small real network, compiled and judged on 2,000 images, from the package alone.

The depthwise network and its Fashion-MNIST images lie in models/, which is installed as
qcompile/models. Nothing is fetched.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from qcompile.ir.errors import OutputError
from qcompile.reporter import Reporter
from qcompile.result import CompileResult

__all__ = ["Demo", "models_folder", "run_demo"]

MODEL = "fmnist_dwcnn.onnx"
BATCH = 32
MAX_DROP = "1pt"
OUTPUT = "fmnist_dwcnn.ort-int8"

Feed = dict[str, npt.NDArray[np.float32]]
Run = Callable[[Feed], Mapping[str, npt.NDArray[np.generic]]]


def models_folder() -> Path:
    """The folder with the small models: beside this file when installed, else the clone's.

    Raises:
        OutputError: neither is there; the installation is not whole.
    """
    here = Path(__file__).resolve().parent
    for folder in (here / "models", here.parent / "models"):
        if (folder / MODEL).is_file():
            return folder
    raise OutputError(
        f"{MODEL} is neither in {here / 'models'} nor in {here.parent / 'models'}; "
        "install qcompile again"
    )


def read_images(path: Path) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Images ``(n, 1, 28, 28)`` in 0..1, as the networks take them, and their labels ``(n,)``."""
    with np.load(path) as data:
        images = data["images"].astype(np.float32)[:, None] / np.float32(255)
        return images, data["labels"].astype(np.int64)


def calibration_feeds(images: npt.NDArray[np.float32]) -> list[Feed]:
    """The images in batches, by input name."""
    return [{"image": images[i : i + BATCH]} for i in range(0, len(images), BATCH)]


def top1_metric(
    images: npt.NDArray[np.float32], labels: npt.NDArray[np.int64]
) -> Callable[[Run], float]:
    """The share of images that a model puts into the right class, as a metric."""

    def top1(run: Run) -> float:
        right = 0
        for start in range(0, len(images), BATCH):
            logits = run({"image": images[start : start + BATCH]})["logits"]
            right += int((logits.argmax(-1) == labels[start : start + BATCH]).sum())
        return right / len(images)

    return top1


@dataclass(frozen=True)
class Demo:
    """What a demo came to.

    Attributes:
        result: of the compile.
        seconds: all of it took.
    """

    result: CompileResult
    seconds: float

    def lines(self) -> list[str]:
        """The figures and the verdict."""
        rows = figures(self.result.report.data["gate"], self.seconds)
        return [*(f"  {name:<6}{text}" for name, text in rows), *self.result.headlines()]


def run_demo(
    out: Path | None = None, *, say: Callable[[str], None], reporter: Reporter | None = None
) -> Demo:
    """Compiles the depthwise network for this CPU.

    Args:
        out: the artifact's folder; None: fmnist_dwcnn.ort-int8 in the working folder.
        say: is told at once what is compiled.
        reporter: is told the stages.
    """
    import qcompile

    folder = models_folder()
    calibration, _ = read_images(folder / "fmnist_calibration.npz")
    test, labels = read_images(folder / "fmnist_test.npz")
    say(
        f"{MODEL}: a depthwise CNN for Fashion-MNIST, "
        f"{len(calibration)} images to calibrate, {len(test):,} others to test"
    )
    start = time.perf_counter()
    result = qcompile.compile(
        folder / MODEL,
        target="ort-int8",
        calibration=calibration_feeds(calibration),
        metric=top1_metric(test, labels),
        max_drop=MAX_DROP,
        output=Path(OUTPUT) if out is None else out,
        progress=reporter,
    )
    return Demo(result, time.perf_counter() - start)


def figures(gate: Mapping[str, Any], seconds: float) -> list[tuple[str, str]]:
    """The rows of the demo's table: what the gate measured before and after, and the time it took."""
    rows = []
    if score := gate.get("score"):
        rows.append(("top-1", f"{score['float_score']:.4f} -> {score['artifact_score']:.4f}"))
    if gate.get("speed") and gate["speedup"]:
        before, after = (gate["speed"]["models"][m]["p50_ms"] for m in ("float", "artifact"))
        rows.append(
            (
                "speed",
                f"{before:.3f} -> {after:.3f} ms p50 for {BATCH} images, {gate['speedup']:.2f}x",
            )
        )
    if gate.get("float_bytes") and gate.get("artifact_bytes"):
        before, after = gate["float_bytes"], gate["artifact_bytes"]
        rows.append(("size", f"{before:,} -> {after:,} bytes, {before / after:.1f}x smaller"))
    return [*rows, ("time", f"{seconds:.1f} s for all of it")]
