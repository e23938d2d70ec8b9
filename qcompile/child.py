"""A process of its own that measures: starts ``qcompile.worker``, hands over jobs, follows its replies."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from qcompile.ir.errors import ModelError, QCompileError
from qcompile.scratch import scratch_folder

__all__ = ["Child", "run_child", "stored_feeds"]

Feed = Mapping[str, Any]
Progress = Callable[[float], None]


@contextlib.contextmanager
def stored_feeds(feeds: Sequence[Feed]) -> Iterator[list[str]]:
    """The feeds as .npz files in a temporary folder, which is gone afterwards."""
    with scratch_folder() as folder:
        files = []
        for index, feed in enumerate(feeds):
            path = folder / f"feed{index:04d}.npz"
            arrays = {name: _storable(value) for name, value in feed.items()}
            with path.open("wb") as out:
                # the keys are the user's input names, of which one may be "file"
                _savez(out, arrays)
            files.append(str(path))
        yield files


def _savez(out: IO[bytes], arrays: Mapping[str, np.ndarray[Any, Any]]) -> None:
    import zipfile

    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, allow_pickle=False)


def _storable(value: Any) -> np.ndarray[Any, Any]:
    array = np.asarray(value)
    return array.astype(np.str_) if array.dtype == object else array


class Child:
    """A measuring process: does jobs one after another; a model that a job says to keep stays open in it."""

    def __init__(self) -> None:
        env = dict(os.environ)
        # so that a source checkout that is not installed finds itself
        root = str(Path(__file__).resolve().parent.parent)
        env["PYTHONPATH"] = os.pathsep.join(p for p in (root, env.get("PYTHONPATH", "")) if p)
        env["PYTHONIOENCODING"] = "utf-8"
        self._held = contextlib.ExitStack()
        errors = tempfile.TemporaryFile()  # noqa: SIM115 (closed by the stack)
        self._errors: IO[bytes] = self._held.enter_context(errors)
        # an empty working directory: `-m` puts it first on the path, and a user's folder may
        # hold a numpy.py
        folder = self._held.enter_context(scratch_folder())
        self._process = subprocess.Popen(
            [sys.executable, "-m", "qcompile.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=env,
            cwd=folder,
            encoding="utf-8",
        )

    @property
    def alive(self) -> bool:
        """Whether it can be asked: a model that crashed the runtime ended it."""
        return self._process.poll() is None

    def end(self) -> None:
        """End the process, whatever it does."""
        with self._held:
            if self._process.poll() is None:
                self._process.kill()
            self._process.wait()
            for pipe in (self._process.stdin, self._process.stdout):
                if pipe is not None:
                    with contextlib.suppress(BrokenPipeError):
                        pipe.close()

    def send(self, job: Mapping[str, Any]) -> None:
        """Hand over a job without waiting for it; its reply is the next that ``reply`` gives."""
        if self._process.stdin is None:
            raise QCompileError("the measuring process has no pipes")
        with contextlib.suppress(BrokenPipeError):  # it is gone: the reply says so
            self._process.stdin.write(json.dumps(job) + "\n")
            self._process.stdin.flush()

    def reply(self, models: Mapping[str, Path], progress: Progress | None = None) -> dict[str, Any]:
        """The result of the oldest job that was sent.

        Raises:
            ModelError: a model cannot be opened or run, or crashes the runtime; names it.
        """
        result = self._last_line(progress)
        if result is None:
            self._process.wait()
            raise ModelError(_crash(self._process.returncode, models, self._errors))
        if "error" in result:
            at = result.get("model") or ""
            where = f"model '{models[at]}': " if at in models and len(models) > 1 else ""
            raise ModelError(f"{where}{result['error']}")
        found: dict[str, Any] = result["result"]
        return found

    def ask(
        self, job: Mapping[str, Any], models: Mapping[str, Path], progress: Progress | None = None
    ) -> dict[str, Any]:
        """The result of a job, see ``reply``."""
        self.send(job)
        return self.reply(models, progress)

    def _last_line(self, progress: Progress | None) -> dict[str, Any] | None:
        """What ends a job; None if the process ended without."""
        if self._process.stdout is None:
            raise QCompileError("the measuring process has no pipes")
        for line in self._process.stdout:
            reply: dict[str, Any] = json.loads(line)
            if "progress" not in reply:
                return reply
            if progress is not None:
                progress(min(1.0, reply["progress"] / reply["of"]))
        return None


def run_child(
    job: Mapping[str, Any], models: Mapping[str, Path], progress: Progress | None
) -> dict[str, Any]:
    """Run one job in a process of its own; ends it whatever happens."""
    child = Child()
    try:
        return child.ask(job, models, progress)
    finally:
        child.end()


def _crash(code: int, models: Mapping[str, Path], errors: IO[bytes]) -> str:
    errors.seek(0)
    lines = errors.read().decode("utf-8", "replace").strip().splitlines()
    tail = " / ".join(line.strip() for line in lines[-3:] if line.strip()) or "it wrote nothing"
    names = ", ".join(f"'{path}'" for path in models.values())
    how = f"signal {-code}" if code < 0 else f"exit code {code}"
    return f"ONNX Runtime crashed ({how}) while measuring {names}; its last words: {tail}"
