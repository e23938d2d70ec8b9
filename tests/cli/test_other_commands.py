"""doctor, completion, targets, inspect, verify --against, and what every command has in common."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from qcompile import doctor
from qcompile.cli import main
from qcompile.cli.main import COMMANDS, cli
from qcompile.ir.errors import BackendMissingError

Capture = pytest.CaptureFixture[str]


def test_doctor_runs_a_tiny_model(capsys: Capture) -> None:
    assert main(["doctor", "--json"]) == 0
    found = {f["name"]: f for f in json.loads(capsys.readouterr().out)["findings"]}
    for name in ("onnx runtime", "integer kernels", "measuring process", "temporary space"):
        assert found[name]["state"] == "ok", found[name]
    assert found["tensorrt"]["state"] in ("ok", "absent")


def test_doctor_names_what_is_broken(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise BackendMissingError("two builds overwrite each other's files; keep one")

    monkeypatch.setattr(doctor, "check_runtime", missing)
    assert main(["doctor"]) == 4
    said = capsys.readouterr().out
    assert "BROKEN  onnx runtime: two builds" in said
    assert "DOES NOT WORK here: onnx runtime" in said


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(shell: str, capsys: Capture) -> None:
    assert main(["completion", shell]) == 0
    assert f"_QCOMPILE_COMPLETE={shell}_complete" in capsys.readouterr().out


def test_completion_of_an_unknown_shell_suggests(capsys: Capture) -> None:
    assert main(["completion", "tcsh"]) == 2
    assert "bash" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("qcompile expl", "plain,explain"),
        ("qcompile mod", "file,mod"),
        ("qcompile targets ort-i", "plain,ort-int8"),
        ("qcompile compile --device arm64-i", "plain,arm64-i8mm"),
        ("qcompile model.onnx --min-sp", "plain,--min-speedup"),
    ],
)
def test_completion_knows_commands_files_names_and_options(words: str, expected: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "qcompile"],
        capture_output=True,
        text=True,
        check=False,
        env={
            **os.environ,
            "_QCOMPILE_COMPLETE": "bash_complete",
            "COMP_WORDS": words,
            "COMP_CWORD": str(len(words.split()) - 1),
        },
    )
    assert expected in done.stdout.splitlines(), done.stderr


def test_targets_lists_cpus_and_gpus(capsys: Capture) -> None:
    assert main(["targets", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert "ort-int8" in found["targets"]
    assert "x86-vnni" in {c["name"] for c in found["cpus"]}
    assert "jetson-orin" in {g["name"] for g in found["gpus"]}
    assert main(["targets"]) == 0
    assert "GPUs (--device)" in capsys.readouterr().out


def test_targets_suggests_the_right_name(capsys: Capture) -> None:
    assert main(["targets", "ort-int9"]) == 2
    assert "nearest: ort-int8" in capsys.readouterr().err


def test_inspect_has_shares_and_the_users_own_names(built: Path, capsys: Capture) -> None:
    assert main(["inspect", str(built / "net.onnx"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["outputs"] == ["scores: float32[Nx5]"]
    assert found["macs"] == 64 * 8 * 27 + 40 and found["macs_at"] == {"image": [1, 3, 8, 8]}
    assert 0 < found["quantizable_mac_share"] <= 1
    assert main(["inspect", str(built / "net.onnx"), "-t", "tensorrt-int8", "--nodes"]) == 0
    assert "can be integer on tensorrt-int8" in capsys.readouterr().out


def test_verify_against_lists_what_a_target_refuses(built: Path, capsys: Capture) -> None:
    portable = str(built / "net.ort-int8" / "model.qdq.onnx")
    assert main(["verify", portable, "--against", "ort-int8"]) == 0
    assert "ACCEPTED" in capsys.readouterr().out
    assert main(["verify", portable, "--against", "tensorrt-int8", "--json"]) == 3
    found = json.loads(capsys.readouterr().out)
    assert {"effect", "node", "op_type", "tensor", "found", "remedy"} == set(found["found"][0])
    assert main(["verify", portable, "--against", "tensor-int8"]) == 2
    assert "nearest: tensorrt-int8" in capsys.readouterr().err


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_with_an_example(name: str) -> None:
    result = CliRunner().invoke(cli, [name, "--help"])
    assert result.exit_code == 0
    # the examples: lines of their own that begin with the program's name
    examples = [e for e in result.output.splitlines() if re.match(r"  (\w+: +)?qcompile ", e)]
    assert examples and "\\b" not in result.output, result.output


def test_the_list_of_commands_is_whole_sentences() -> None:
    lines = CliRunner().invoke(cli, ["--help"]).output.splitlines()
    for name, (_, short) in COMMANDS.items():
        assert any(re.fullmatch(rf"  {name} +{re.escape(short)}", line) for line in lines), name


@pytest.mark.parametrize("name", [n for n in COMMANDS if n != "completion"])
def test_every_answer_is_there_as_json(name: str) -> None:
    assert "--json" in CliRunner().invoke(cli, [name, "--help"]).output
