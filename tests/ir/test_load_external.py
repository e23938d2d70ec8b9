"""Weights in side files: only from the model's folder, whole, and no copy where the file is big."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper, parser

from qcompile.ir import read
from qcompile.ir.errors import ModelError
from qcompile.ir.graph import constant
from qcompile.ir.load import load_model
from qcompile.ir.save import save_model

W = np.arange(12, dtype=np.float32).reshape(3, 4)
links = pytest.mark.skipif(sys.platform == "win32", reason="links need rights on Windows")


def model(location: str = "w.bin", **place: object) -> onnx.ModelProto:
    proto = parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]>\n'
        "g (float[N,3] x) => (float[N,4] y) { y = MatMul(x, w) }"
    )
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[3, 4])
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, **place}.items():
        tensor.external_data.add(key=key, value=str(value))
    proto.graph.initializer.append(tensor)
    return proto


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a model and its side file, in a parent with a file of the same content."""
    inside = tmp_path / "model"
    inside.mkdir()
    (inside / "w.bin").write_bytes(b"head" + W.tobytes())
    (tmp_path / "secret.bin").write_bytes(W.tobytes())
    onnx.save(model(offset=4, length=48), inside / "m.onnx")
    return inside


def weight(path: Path | bytes, **options: Path) -> object:
    array = constant(load_model(path, **options).model.graph.initializers["w"])  # type: ignore[arg-type]
    assert array is not None
    return array.tolist()


def test_side_files_are_found_beside_the_model(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder.parent)
    assert weight(folder / "m.onnx") == W.tolist()
    assert weight(Path("model/m.onnx")) == W.tolist()
    monkeypatch.chdir(folder)
    assert weight(Path("m.onnx")) == W.tolist()


def test_the_hash_covers_the_side_file(folder: Path) -> None:
    before = load_model(folder / "m.onnx").sha256
    moved = shutil.copytree(folder, folder.parent / "elsewhere")
    assert load_model(moved / "m.onnx").sha256 == before
    (folder / "w.bin").write_bytes(b"head" + (W + 1).tobytes())
    assert load_model(folder / "m.onnx").sha256 != before


def test_bytes_need_a_folder(folder: Path) -> None:
    data = (folder / "m.onnx").read_bytes()
    with pytest.raises(ModelError, match=r"side file 'w.bin', which bytes alone do not locate"):
        load_model(data)
    assert weight(data, base_dir=folder) == W.tolist()


def test_a_missing_side_file_is_named(folder: Path) -> None:
    (folder / "w.bin").unlink()
    with pytest.raises(ModelError, match=r"tensor 'w' lie in the side file 'w.bin'.*missing"):
        load_model(folder / "m.onnx")


@pytest.mark.parametrize("size", [0, 4, 51])
def test_a_short_side_file_is_refused(folder: Path, size: int) -> None:
    (folder / "w.bin").write_bytes(bytes(size))
    with pytest.raises(ModelError, match=rf"bytes 4 to 52 of 'w.bin', which has {size}"):
        load_model(folder / "m.onnx")


def test_a_length_that_does_not_fit_the_shape_is_refused(folder: Path) -> None:
    onnx.save(model(offset=0, length=40), folder / "m.onnx")
    with pytest.raises(ModelError, match=r"shape \[3, 4\] needs 48 bytes, 'w.bin' gives it 40"):
        load_model(folder / "m.onnx")


@pytest.mark.parametrize("location", ["../secret.bin", "a/../../secret.bin", "", "C:\\w.bin"])
def test_other_folders_are_not_read(folder: Path, location: str) -> None:
    onnx.save(model(location), folder / "m.onnx")
    with pytest.raises(ModelError, match="only relative paths within the model's folder"):
        load_model(folder / "m.onnx")


def test_absolute_paths_are_not_read(folder: Path) -> None:
    onnx.save(model(str(folder / "w.bin"), offset=4), folder / "m.onnx")
    with pytest.raises(ModelError, match="only relative paths within the model's folder"):
        load_model(folder / "m.onnx")


@links
def test_a_link_to_outside_is_not_followed(folder: Path) -> None:
    (folder / "w.bin").unlink()
    (folder / "w.bin").symlink_to(folder.parent / "secret.bin")
    onnx.save(model(), folder / "m.onnx")
    with pytest.raises(ModelError, match="a link to outside the model's folder"):
        load_model(folder / "m.onnx")


@links
def test_a_linked_folder_is_not_followed(folder: Path) -> None:
    (folder / "sub").symlink_to(folder.parent)
    onnx.save(model("sub/secret.bin"), folder / "m.onnx")
    with pytest.raises(ModelError, match="a link to outside the model's folder"):
        load_model(folder / "m.onnx")


@links
def test_download_caches_link_model_and_side_file_into_one_store(folder: Path) -> None:
    store, snapshot = folder.parent / "blobs", folder.parent / "snapshot"
    store.mkdir()
    snapshot.mkdir()
    for name in ("m.onnx", "w.bin"):
        (folder / name).rename(store / f"hash-of-{name}")
        (snapshot / name).symlink_to(store / f"hash-of-{name}")
    assert weight(snapshot / "m.onnx") == W.tolist()


def test_a_side_file_in_a_subfolder(folder: Path) -> None:
    (folder / "data").mkdir()
    (folder / "w.bin").rename(folder / "data" / "w.bin")
    onnx.save(model("data/w.bin", offset=4), folder / "m.onnx")
    assert weight(folder / "m.onnx") == W.tolist()


def test_a_mapped_weight_is_no_copy(folder: Path) -> None:
    (folder / "w.bin").write_bytes(bytes(400_000))
    proto = model(length=400_000)
    proto.graph.initializer[0].dims[:] = [100_000, 1]
    onnx.save(proto, folder / "m.onnx")
    array = constant(load_model(folder / "m.onnx").model.graph.initializers["w"])
    assert array is not None and not array.flags.owndata and not array.flags.writeable


def test_a_file_that_is_written_anew_in_place_does_not_take_the_weights_along(folder: Path) -> None:
    (folder / "w.bin").write_bytes(np.full(100_000, 3, np.float32).tobytes())
    proto = model(length=400_000)
    proto.graph.initializer[0].dims[:] = [100_000, 1]
    onnx.save(proto, folder / "m.onnx")
    array = constant(load_model(folder / "m.onnx").model.graph.initializers["w"])
    # read while truncated, a mapping would end the process with SIGBUS
    (folder / "w.bin").write_bytes(b"")
    assert array is not None and set(array.reshape(-1).tolist()) == {3.0}


def test_a_big_file_is_mapped(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read, "_READ_BELOW", 1)
    onnx.save(model(offset=4), folder / "m.onnx")
    assert weight(folder / "m.onnx") == W.tolist()


def test_models_saved_with_a_side_file_load_again(tmp_path: Path) -> None:
    big = np.random.default_rng(0).normal(size=(3, 400)).astype(np.float32)
    proto = model()
    proto.graph.initializer[0].CopyFrom(numpy_helper.from_array(big, "w"))
    out = tmp_path / "out.onnx"
    save_model(load_model(proto).model, out, external_above=1000)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.onnx", "out.onnx.data"]
    assert weight(out) == big.tolist()
