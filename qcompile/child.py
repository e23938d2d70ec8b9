"""A process of its own that measures: starts ``qcompile.worker``, hands over a job, follows its replies."""

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

__all__ = ["run_child", "stored_feeds"]

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


def run_child(
    job: Mapping[str, Any], models: Mapping[str, Path], progress: Progress | None
) -> dict[str, Any]:
    """Run a job in a child process and return its result; ends the child whatever happens."""
    env = dict(os.environ)
    # so that a source checkout that is not installed finds itself
    root = str(Path(__file__).resolve().parent.parent)
    env["PYTHONPATH"] = os.pathsep.join(p for p in (root, env.get("PYTHONPATH", "")) if p)
    env["PYTHONIOENCODING"] = "utf-8"
    with (
        tempfile.TemporaryFile() as errors,
        scratch_folder() as folder,
    ):
        # an empty working directory: `-m` puts it first on the path, and a user's folder may
        # hold a numpy.py
        child = subprocess.Popen(
            [sys.executable, "-m", "qcompile.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            env=env,
            cwd=folder,
            encoding="utf-8",
        )
        try:
            result = _talk(child, job, progress)
        finally:
            if child.poll() is None:
                child.kill()
            child.wait()
            for pipe in (child.stdin, child.stdout):
                if pipe is not None:
                    with contextlib.suppress(BrokenPipeError):
                        pipe.close()
        if result is None:
            raise ModelError(_crash(child.returncode, models, errors))
        if "error" in result:
            at = result.get("model") or ""
            where = f"model '{models[at]}': " if at in models and len(models) > 1 else ""
            raise ModelError(f"{where}{result['error']}")
        found: dict[str, Any] = result["result"]
        return found


def _talk(
    child: subprocess.Popen[str], job: Mapping[str, Any], progress: Progress | None
) -> dict[str, Any] | None:
    """Hand over the job, follow the replies; the last one, or None if the child ended without."""
    if child.stdin is None or child.stdout is None:
        raise QCompileError("the measuring process has no pipes")
    try:
        child.stdin.write(json.dumps(job) + "\n")
        child.stdin.flush()
    except BrokenPipeError:
        return None
    for line in child.stdout:
        reply: dict[str, Any] = json.loads(line)
        if "progress" in reply:
            if progress is not None:
                progress(min(1.0, reply["progress"] / reply["of"]))
            continue
        child.wait()
        return reply
    child.wait()
    return None


def _crash(code: int, models: Mapping[str, Path], errors: IO[bytes]) -> str:
    errors.seek(0)
    lines = errors.read().decode("utf-8", "replace").strip().splitlines()
    tail = " / ".join(line.strip() for line in lines[-3:] if line.strip()) or "it wrote nothing"
    names = ", ".join(f"'{path}'" for path in models.values())
    how = f"signal {-code}" if code < 0 else f"exit code {code}"
    return f"ONNX Runtime crashed ({how}) while measuring {names}; its last words: {tail}"
