"""NVIDIA GPUs as rows of data: what decides the integer form is the compute capability."""

from __future__ import annotations

import difflib
import shutil
import subprocess
from dataclasses import dataclass

from qcompile.ir.errors import TargetError

__all__ = ["Gpu", "get_gpu", "gpu_names"]

_RTX = "ahead-of-time build with TensorRT for RTX 1.7"


@dataclass(frozen=True)
class Gpu:
    """A row of GPUs.

    Attributes:
        name: as given to ``--device``.
        capability: compute capability times ten.
        ahead_of_time: TensorRT for RTX builds engines for it without a GPU.
        int8_products: Conv and MatMul have INT8 kernels.
        fp8: E4M3 kernels exist.
        source: where this is known from.
        assumed: no one named it and no GPU was found.
    """

    name: str
    capability: int
    ahead_of_time: bool
    int8_products: bool
    fp8: bool
    source: str
    assumed: bool = False

    @property
    def int4(self) -> bool:
        """INT4 weights compile: from Ampere on."""
        return self.capability >= 80

    @property
    def fp4(self) -> bool:
        """Products of 4-bit floats: from Blackwell on."""
        return self.capability >= 100


_ROWS = {
    gpu.name: gpu
    for gpu in (
        Gpu("sm75", 75, True, False, False, f"{_RTX}: INT8 Conv runs in float, MatMul is refused"),
        Gpu("sm80", 80, True, True, False, _RTX),
        Gpu("sm86", 86, True, True, False, _RTX),
        Gpu("sm87", 87, False, True, False, "vendor documentation; same generation as SM86"),
        Gpu("sm89", 89, True, True, True, _RTX),
        Gpu("sm90", 90, False, True, True, "vendor documentation"),
        Gpu("sm100", 100, False, True, True, "vendor documentation"),
        Gpu("sm120", 120, True, True, True, _RTX),
    )
}
_ALIASES = {"jetson-orin": "sm87"}


def gpu_names() -> tuple[str, ...]:
    """What ``--device`` takes for GPUs."""
    return ("native", *_ALIASES, *_ROWS)


def get_gpu(name: str | None = None, assumed: str = "sm80") -> Gpu:
    """A GPU by name; "native" or None is the first GPU of this machine.

    Where there is none, the rules of ``assumed`` are taken, which hold for every later GPU.

    Raises:
        TargetError: unknown name (with the nearest ones), or a GPU older than the rows.
    """
    if name is None or name == "native":
        found = _installed()
        if found is None:
            return Gpu(**{**vars(_ROWS[assumed]), "assumed": True})
        name = f"sm{found}"
    row_name = _ALIASES.get(name, name)
    if row_name not in _ROWS:
        near = difflib.get_close_matches(name, gpu_names(), n=3, cutoff=0.3) or gpu_names()
        raise TargetError(f"device '{name}' is unknown to TensorRT; nearest: {', '.join(near)}")
    return Gpu(**{**vars(_ROWS[row_name]), "name": name})


def _installed() -> int | None:
    """Compute capability times ten of the first GPU, None without one."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return None
    command = [tool, "--query-gpu=compute_cap", "--format=csv,noheader"]
    try:
        text = subprocess.run(
            command, capture_output=True, text=True, timeout=20, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    digits = text.split("\n", 1)[0].strip().replace(".", "")
    return int(digits) if digits.isdigit() else None
