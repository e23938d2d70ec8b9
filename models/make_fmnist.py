"""Draws the two small Fashion-MNIST sets of this folder from the original IDX files.

    python models/make_fmnist.py DIR      # DIR holds the four *-ubyte.gz files of Fashion-MNIST

Calibration: the first 256 images of the train split. Test: the first 2,000 of the t10k split. Both
splits are shuffled at their source, so "the first" is a fair draw that anyone can check by eye.
The archive's bytes depend on the pixels alone (fixed time stamps, fixed order), so that their sha256
in zoo.toml can be reproduced.
"""

from __future__ import annotations

import gzip
import io
import sys
import zipfile
from pathlib import Path

import numpy as np
import numpy.typing as npt

HERE = Path(__file__).resolve().parent
SETS = {"fmnist_calibration.npz": ("train", 256), "fmnist_test.npz": ("t10k", 2000)}
IMAGE_HEADER, LABEL_HEADER = 16, 8  # bytes before the data in an IDX file of rank 3 and of rank 1


def read_split(folder: Path, split: str, count: int) -> dict[str, npt.NDArray[np.uint8]]:
    """The first images ``(count, 28, 28)`` and labels ``(count,)`` of a split, as uint8."""
    images = gzip.decompress((folder / f"{split}-images-idx3-ubyte.gz").read_bytes())
    labels = gzip.decompress((folder / f"{split}-labels-idx1-ubyte.gz").read_bytes())
    return {
        "images": np.frombuffer(images, np.uint8, offset=IMAGE_HEADER).reshape(-1, 28, 28)[:count],
        "labels": np.frombuffer(labels, np.uint8, offset=LABEL_HEADER)[:count],
    }


def pack(arrays: dict[str, npt.NDArray[np.uint8]]) -> bytes:
    """A ``.npz`` whose bytes do not depend on the clock, as ``np.savez`` makes them do."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name, array in arrays.items():
            entry = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.create_system = 3  # as written on POSIX, also when made on Windows
            body = io.BytesIO()
            np.save(body, np.ascontiguousarray(array))
            archive.writestr(entry, body.getvalue(), compresslevel=9)
    return out.getvalue()


def main() -> int:
    """Writes both sets beside this file."""
    if len(sys.argv) != 2:
        print(__doc__, file=sys.stderr)
        return 2
    for name, (split, count) in SETS.items():
        data = pack(read_split(Path(sys.argv[1]), split, count))
        (HERE / name).write_bytes(data)
        print(f"{name}: {count} images, {len(data):,} bytes")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
