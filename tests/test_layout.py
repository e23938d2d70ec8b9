"""The house: folders, links, what the wheel holds, the floor, and nothing that is POSIX-only."""

from __future__ import annotations

import ast
import fnmatch
import re
import sys
from collections.abc import Iterator
from importlib import resources, util
from pathlib import Path
from typing import Any

import pytest

from qcompile.demo import models_folder

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
LINKS = ("passes", "calibrators", "backends")
CODE = ("qcompile", *LINKS, "models")
NOT_SHIPPED = {"models/make_fmnist.py"} | {
    f"models/fmnist_{n}.onnx" for n in ("cnn", "vit", "lstm")
}


@pytest.fixture(scope="module")
def pyproject() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def files() -> Iterator[Path]:
    """Every file of the code folders but caches, each once (not through the links)."""
    for folder in CODE:
        for path in sorted((ROOT / folder).rglob("*")):
            through = any(p.is_symlink() for p in path.parents) or path.is_symlink()
            if path.is_file() and not through and "__pycache__" not in path.parts:
                yield path


def shipped(pyproject: dict[str, Any]) -> set[str]:
    """What setuptools puts into the wheel: modules of named packages and matching data files."""
    setup = pyproject["tool"]["setuptools"]
    found = set()
    for package in setup["packages"]:
        folder = setup["package-dir"].get(package, package.replace(".", "/"))
        data = setup["package-data"]
        for pattern in ("*.py", *data.get("*", []), *data.get(package, [])):
            found |= {p.relative_to(ROOT).as_posix() for p in (ROOT / folder).glob(pattern)}
    return found


def test_the_wheel_lacks_no_file(pyproject: dict[str, Any]) -> None:
    on_disk = {p.relative_to(ROOT).as_posix() for p in files()} - NOT_SHIPPED
    assert on_disk - shipped(pyproject) == set(), (
        "add the folder to [tool.setuptools] packages, or the file to package-data"
    )


def test_every_named_package_is_there(pyproject: dict[str, Any]) -> None:
    setup = pyproject["tool"]["setuptools"]
    for package in setup["packages"]:
        folder = setup["package-dir"].get(package, package.replace(".", "/"))
        assert (ROOT / folder / "__init__.py").is_file(), package


@pytest.mark.skipif(sys.platform == "win32", reason="git checks links out as text there")
def test_three_links_and_no_more() -> None:
    links = {p.relative_to(ROOT).as_posix(): p for f in CODE for p in (ROOT / f).rglob("*")}
    links = {name: p for name, p in links.items() if p.is_symlink()}
    assert set(links) == {f"qcompile/{name}" for name in LINKS}
    for name, path in links.items():
        assert path.readlink().as_posix() == f"../{Path(name).name}"


@pytest.mark.parametrize("name", [*LINKS, "ir"])
def test_packages_are_found_where_they_lie(name: str) -> None:
    spec = util.find_spec(f"qcompile.{name}")
    assert spec is not None and spec.origin is not None
    folder = ROOT / (f"qcompile/{name}" if name == "ir" else name)
    assert Path(spec.origin).resolve() == folder / "__init__.py"


def test_the_demo_finds_its_files() -> None:
    folder = models_folder()
    for name in ("fmnist_dwcnn.onnx", "fmnist_calibration.npz", "fmnist_test.npz", "zoo.toml"):
        assert (folder / name).is_file()
    assert resources.files("qcompile").joinpath("py.typed").is_file()


def test_what_is_tested_as_the_floor_is_what_is_promised(pyproject: dict[str, Any]) -> None:
    project = pyproject["project"]
    extras = project["optional-dependencies"]
    promised = [*project["dependencies"], *extras["cpu"], *extras["text"]]
    bounds = {re.sub(r"\s*;.*", "", line).replace(">=", "==") for line in promised}
    floor = (ROOT / ".ci" / "floor.txt").read_text(encoding="utf-8").splitlines()
    assert bounds == {line for line in floor if line and not line.startswith("#")}


def test_cpu_and_gpu_are_told_apart(pyproject: dict[str, Any]) -> None:
    extras = pyproject["project"]["optional-dependencies"]
    assert {"cpu", "gpu", "tensorrt", "openvino", "test"} <= set(extras)
    for name, lines in extras.items():
        runtimes = [line for line in lines if line.startswith("onnxruntime")]
        assert len(runtimes) == (name in {"cpu", "gpu"}), name
    assert not any(d.startswith("onnxruntime") for d in pyproject["project"]["dependencies"])


# ------------------------------------------------------------------ where it runs

POSIX_MODULES = {"fcntl", "grp", "posix", "pty", "pwd", "resource", "termios", "tty"}
POSIX_NAMES = {
    "os.fork", "os.forkpty", "os.getuid", "os.geteuid", "os.getpgid", "os.killpg", "os.mkfifo",
    "os.setsid", "os.statvfs", "os.sysconf", "os.uname", "os.wait", "os.nice", "os.posix_spawn",
    "os.sched_getaffinity", "os.sched_setaffinity", "os.getloadavg",
    "signal.SIGKILL", "signal.SIGALRM", "signal.setitimer", "signal.SIGUSR1",
}  # fmt: skip
POSIX_TEXT = ("/tmp*", "/proc/*", "/dev/*", "/sys/*", "/etc/*", "fork", "forkserver")
GUARD = "# POSIX:"  # a reason on the line that is reached on POSIX alone


def posix_only(source: str) -> list[str]:
    """What in the source exists on POSIX alone and is not guarded by a reason on its line."""
    lines = source.splitlines()
    found = []
    for node in ast.walk(ast.parse(source)):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [a.name for a in node.names if a.name in POSIX_MODULES]
        elif isinstance(node, ast.ImportFrom) and node.module in POSIX_MODULES:
            names = [node.module]
        elif isinstance(node, ast.Attribute) and ast.unparse(node) in POSIX_NAMES:
            asked = f'hasattr({ast.unparse(node.value)}, "{node.attr}")'
            names = [ast.unparse(node)] if asked not in source else []
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            value = node.value
            names = [value] if any(fnmatch.fnmatchcase(value, p) for p in POSIX_TEXT) else []
        line = getattr(node, "lineno", 0)
        if names and GUARD not in lines[line - 1]:
            found += [f"line {line}: {name}" for name in names]
    return found


def test_nothing_is_posix_only() -> None:
    sources = {p: p.read_text(encoding="utf-8") for p in files() if p.suffix == ".py"}
    wrong = {
        str(p.relative_to(ROOT)): found for p, s in sources.items() if (found := posix_only(s))
    }
    assert not wrong


def test_the_posix_rule_bites() -> None:
    assert posix_only("import fcntl")
    assert posix_only("import os\npid = os.fork()")
    assert posix_only("open('/proc/meminfo')")
    assert posix_only("get_context('fork')")
    assert not posix_only("import os\nn = os.cpu_count()")
    assert not posix_only('import os\nn = os.nice(0) if hasattr(os, "nice") else 0')
    assert not posix_only("import resource  # POSIX: peak memory; Windows reads it from psutil")


def without_encoding(source: str) -> list[int]:
    """Lines that open text in the system's code page, which is not UTF-8 on Windows."""
    lines = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func).rsplit(".", 1)[-1]
        given = {k.arg: k.value for k in node.keywords}
        if name in {"read_text", "write_text"}:
            bare = "encoding" not in given and len(node.args) <= (name == "write_text")
        elif name == "open" and isinstance(node.func, ast.Name):
            mode = ast.unparse(given.get("mode", node.args[1] if len(node.args) > 1 else node.func))
            bare = "encoding" not in given and "b" not in mode.strip("'")
        else:
            continue
        if bare:
            lines.append(node.lineno)
    return lines


def test_text_files_name_their_encoding() -> None:
    sources = {p: p.read_text(encoding="utf-8") for p in files() if p.suffix == ".py"}
    wrong = {str(p.relative_to(ROOT)): n for p, s in sources.items() if (n := without_encoding(s))}
    assert not wrong


def test_the_encoding_rule_bites() -> None:
    assert without_encoding("path.read_text()") and without_encoding("path.write_text(x)")
    assert without_encoding("open(name)") and without_encoding("open(name, 'w')")
    assert not without_encoding("path.read_text(encoding='utf-8')")
    assert not without_encoding("path.write_text(x, encoding='utf-8')")
    assert not without_encoding("open(name, 'rb')") and not without_encoding(
        "open(name, mode='wb')"
    )


def test_no_package_host_is_named() -> None:
    """Packages come from whatever index the user's client is set up to use."""
    hosts = re.compile(r"pypi\.org|pythonhosted|npmjs|--index-url|--extra-index")
    for path in [*files(), *(ROOT / ".ci").iterdir(), ROOT / "Makefile", ROOT / "pyproject.toml"]:
        if path.suffix in {".onnx", ".npz"}:
            continue
        assert not hosts.search(path.read_text(encoding="utf-8")), path
