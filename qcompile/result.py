"""What a compile returns to Python: verdict, report, artifact, and a session on it."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qcompile.artifact import MODEL, PORTABLE, Artifact, open_artifact
from qcompile.backends.devices import detect, device_names, get_device, missing_features
from qcompile.backends.ort import open_session
from qcompile.ir.errors import OutputError, QCompileError
from qcompile.report import CompileReport
from qcompile.subject import AS_WRITTEN

__all__ = ["CompileResult", "NotDeliveredError", "load"]


class NotDeliveredError(QCompileError):
    """The gate was not met; the text has the numbers."""

    exit_code = 3


@dataclass(frozen=True)
class CompileResult:
    """The outcome of one compile.

    Attributes:
        report: everything about it.
        path: the artifact folder.
        exit_code: as the command line returns it.
        up_to_date: nothing was done, since the artifact was there already.
        keep: holds a temporary folder open for as long as the result lives.
    """

    report: CompileReport
    path: Path
    exit_code: int
    up_to_date: bool = False
    keep: object = field(default=None, repr=False, compare=False)

    @property
    def verdict(self) -> str:
        """One of "delivered", "not delivered", "not measured", "inconclusive"."""
        return self.report.verdict

    @property
    def model(self) -> Path:
        """The lowered model's file; the portable one's where the target's runtime is on a device."""
        lowered, portable = self.path / MODEL, self.path / PORTABLE
        return portable if portable.is_file() and not lowered.is_file() else lowered

    def check(self) -> CompileResult:
        """Itself, when the exit code is 0.

        Raises:
            NotDeliveredError: otherwise.
        """
        if self.exit_code != 0:
            raise NotDeliveredError("; ".join(self.headlines()))
        return self

    def open(self, **options: Any) -> Any:
        """An ``onnxruntime.InferenceSession`` on the artifact, with default options.

        A portable artifact's Q/DQ nodes run as they are written: the device's arithmetic, not its
        speed.

        Args:
            options: of ``qcompile.backends.ort.open_session`` (``threads=``, ``custom_ops=``).

        Raises:
            OutputError: nothing was delivered.
        """
        if not self.model.is_file():
            raise OutputError(f"nothing was delivered: {self.headlines()[0]}")
        if self.model.name == PORTABLE:
            options = {"config": AS_WRITTEN, **options}
        return open_session(self.model, **options).raw

    def headlines(self) -> list[str]:
        """The last lines of a run."""
        return (["up to date"] if self.up_to_date else []) + self.report.headlines()

    def _repr_html_(self) -> str:
        """Verdict and figures for a notebook's cell."""
        from qcompile.report_page.page import render_card

        return render_card(self.report.data)

    def summary(self) -> str:
        """The text of a run."""
        return "\n".join(self.headlines()) if self.up_to_date else self.report.summary()


def load(path: str | Path) -> CompileResult:
    """An artifact compiled before.

    Warns when this CPU lacks what the artifact was compiled for: its sums may saturate, and its speed
    was measured elsewhere.

    Raises:
        OutputError: no such artifact, or its files were changed.
    """
    artifact: Artifact = open_artifact(Path(path))
    wrong = artifact.damaged()
    if wrong:
        raise OutputError(f"'{path}': {'; '.join(wrong)}; compile again")
    report = CompileReport(artifact.report)
    device = str(report.data["target"]["device"])
    # "native" became the name of a row when it was compiled; other devices are no CPUs
    if device != "native" and device in device_names():
        lacking = missing_features(get_device(device).features, detect())
        if lacking:
            warnings.warn(
                f"'{path}' was compiled for {device}, and this CPU lacks {', '.join(lacking)}: its "
                "integer sums may saturate and its speed is another; compile it for this CPU",
                RuntimeWarning,
                stacklevel=2,
            )
    return CompileResult(report, artifact.path, int(report.data["exit_code"]))
