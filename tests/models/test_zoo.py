"""What zoo.toml says about the files is true."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import pytest

from tests.conftest import FMNIST

Images = tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]


def in_git(zoo: dict[str, Any]) -> dict[str, dict[str, Any]]:
    entries = {**zoo["data"], **zoo["models"]}
    return {name: entry for name, entry in entries.items() if "package" not in entry}


def test_every_file_is_described(zoo: dict[str, Any], models_dir: Path) -> None:
    described = {entry["file"] for entry in in_git(zoo).values()}
    there = {p.name for p in models_dir.iterdir() if p.suffix in {".onnx", ".npz"}}
    assert described == there


def test_every_file_has_its_hash(zoo: dict[str, Any], models_dir: Path) -> None:
    for entry in in_git(zoo).values():
        data = (models_dir / entry["file"]).read_bytes()
        assert hashlib.sha256(data).hexdigest() == entry["sha256"], entry["file"]


def test_every_entry_says_where_it_is_from(zoo: dict[str, Any]) -> None:
    for name, entry in [*zoo["data"].items(), *zoo["models"].items()]:
        assert entry["origin"] and entry["licence"] and len(entry["sha256"]) == 64, name
    for name, entry in zoo["models"].items():
        assert entry["task"] and entry["inputs"], name
        assert all(i["name"] and i["dtype"] and i["preprocessing"] for i in entry["inputs"]), name


def test_fetched_models_are_pinned(zoo: dict[str, Any]) -> None:
    fetched = {n: m["package"] for n, m in zoo["models"].items() if "package" in m}
    assert set(fetched) == {"ppocrv4_det", "ppocrv4_rec", "magika", "silero_vad", "minilm"}
    for name, package in fetched.items():
        assert package["version"][0].isdigit() and len(package["sha256"]) == 64, name


@pytest.mark.parametrize("name", FMNIST)
def test_the_input_spec_is_the_models(name: str, zoo: dict[str, Any], models_dir: Path) -> None:
    model = onnx.load(models_dir / f"{name}.onnx")
    entry = zoo["models"][name]
    assert [o.version for o in model.opset_import] == [entry["opset"]]
    (wanted,), (found,) = entry["inputs"], model.graph.input
    dims = found.type.tensor_type.shape.dim
    assert found.name == wanted["name"]
    assert [d.dim_param or d.dim_value for d in dims] == wanted["shape"]
    assert found.type.tensor_type.elem_type == onnx.TensorProto.FLOAT


@pytest.mark.parametrize("name", FMNIST)
def test_the_float_score(
    name: str, zoo: dict[str, Any], models_dir: Path, fmnist_test: Images
) -> None:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(
        models_dir / f"{name}.onnx", options, providers=["CPUExecutionProvider"]
    )
    images, labels = fmnist_test
    right = 0
    for i in range(0, len(images), 250):
        (logits,) = session.run(None, {"image": images[i : i + 250]})
        right += int((logits.argmax(1) == labels[i : i + 250]).sum())
    # One image of 2,000 may fall on the other side of a tie on another CPU.
    assert right / len(images) == pytest.approx(zoo["models"][name]["score"]["value"], abs=0.0015)


def test_the_data(models_dir: Path, zoo: dict[str, Any]) -> None:
    for entry in zoo["data"].values():
        with np.load(models_dir / entry["file"]) as data:
            for name, said in entry["arrays"].items():
                shape = ", ".join(map(str, data[name].shape)) + (
                    "," if data[name].ndim == 1 else ""
                )
                assert said == f"{data[name].dtype} ({shape})"
            assert set(np.unique(data["labels"])) == set(range(10))


def test_calibration_and_test_images_differ(models_dir: Path) -> None:
    sets = []
    for name in ("fmnist_calibration.npz", "fmnist_test.npz"):
        with np.load(models_dir / name) as data:
            sets.append({image.tobytes() for image in data["images"]})
    assert not sets[0] & sets[1]
