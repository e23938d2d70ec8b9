from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as oir
import pytest
from PIL import Image

from qcompile.data.images import PRESETS, parse_preprocess, save_preview
from qcompile.data.inputs import InputSpec, fit_feed, input_specs, random_feeds
from qcompile.data.sources import open_feeds
from qcompile.data.subset import diverse_indices, hold_back
from qcompile.ir.errors import CalibrationError, OptionError


def specs_of(inputs: str) -> tuple[InputSpec, ...]:
    text = f'<ir_version: 8, opset_import: ["": 17]> g ({inputs}) => (float[n] y) {{ y = Identity(x) }}'
    return input_specs(oir.serde.deserialize_model(onnx.parser.parse_model(text)))


IMAGE = specs_of("float[N,3,8,8] x")
FIXED = specs_of("float[2,3] x")
TWO = specs_of("float[N,3] x, int64[N] ids")


def test_specs() -> None:
    assert str(IMAGE[0]) == "x: float32[Nx3x8x8]"
    assert IMAGE[0].batch_is_free
    assert not FIXED[0].batch_is_free


def test_missing_batch_axis_is_added_and_said() -> None:
    feed, notes = fit_feed({"x": np.zeros((3, 8, 8), np.float32)}, IMAGE, "s")
    assert feed["x"].shape == (1, 3, 8, 8)
    assert "batch axis" in notes[0]


def test_strings_are_read_stored_and_compared(tmp_path: Path) -> None:
    specs = specs_of("string[N,1] x")
    for index, word in enumerate(("one", "three", "one", "three", "four")):
        np.savez(tmp_path / f"{index}.npz", x=np.array([[word]]))
    feeds = open_feeds(tmp_path, specs)
    assert feeds.load(1)["x"].tolist() == [["three"]]
    objects, _ = fit_feed({"x": np.array([["one"]], object)}, specs, "s")
    assert objects["x"].tobytes() == feeds.load(0)["x"].tobytes()
    assert len(diverse_indices(feeds, 3)) == 3
    with pytest.raises(CalibrationError, match="is int64, the model needs strings"):
        fit_feed({"x": np.zeros((1, 1), np.int64)}, specs, "s")


@pytest.mark.parametrize(
    ("array", "says"),
    [
        (np.zeros((1, 3, 8, 9), np.float32), "shape 1x3x8x9"),
        (np.zeros((1, 3, 8, 8), np.uint8), "is uint8, the model needs float32"),
        (np.full((1, 3, 8, 8), np.nan, np.float32), "NaN"),
        (np.full((1, 3, 8, 8), np.inf, np.float32), "Inf"),
        (np.zeros((0, 3, 8, 8), np.float32), "empty"),
    ],
)
def test_feeds_that_do_not_fit(array: np.ndarray, says: str) -> None:
    with pytest.raises(CalibrationError, match=says):
        fit_feed({"x": array}, IMAGE, "sample 3")


def test_missing_and_unknown_inputs_are_named() -> None:
    with pytest.raises(CalibrationError, match="no data for input 'ids'"):
        fit_feed({"x": np.zeros((1, 3), np.float32)}, TWO, "s")
    with pytest.raises(CalibrationError, match="'image', which is no input"):
        fit_feed({"x": np.zeros((1, 3, 8, 8), np.float32), "image": np.zeros(1)}, IMAGE, "s")


def test_random_feeds_fit_and_repeat() -> None:
    first, again = random_feeds(TWO, 2, seed=1), random_feeds(TWO, 2, seed=1)
    assert first[0]["x"].shape == (1, 3)
    assert first[0]["ids"].shape == (1,)
    np.testing.assert_array_equal(first[1]["x"], again[1]["x"])


def test_npz_of_a_multiple_of_a_fixed_batch_is_split(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.arange(18, dtype=np.float32).reshape(6, 3))
    feeds = open_feeds(tmp_path, FIXED)
    assert [f["x"][0, 0] for f in feeds] == [0, 6, 12]
    assert feeds.names[1] == "a.npz[1]"


def test_one_npz_with_a_free_batch_is_split_by_one_but_a_folder_is_not(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.zeros((6, 3, 8, 8), np.float32))
    assert len(open_feeds(tmp_path / "a.npz", IMAGE)) == 6
    np.savez(tmp_path / "b.npz", x=np.zeros((6, 3, 8, 8), np.float32))
    assert len(open_feeds(tmp_path, IMAGE)) == 2


def test_npy_needs_a_single_input(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((1, 3, 8, 8), np.float32))
    assert len(open_feeds(tmp_path, IMAGE)) == 1
    with pytest.raises(CalibrationError, match=r"2 inputs.*save an \.npz"):
        open_feeds(tmp_path, TWO)


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match="does not exist"):
        open_feeds(tmp_path / "no", IMAGE)
    with pytest.raises(CalibrationError, match="needed: images"):
        open_feeds(tmp_path, IMAGE)
    with pytest.raises(CalibrationError, match="no samples"):
        open_feeds([], IMAGE)


def test_damaged_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.npz").write_bytes(b"PK\x03\x04 not really")
    with pytest.raises(CalibrationError, match=r"a\.npz"):
        open_feeds(tmp_path, IMAGE)
    (tmp_path / "a.npz").unlink()
    (tmp_path / "a.png").write_bytes(b"not an image")
    with pytest.raises(CalibrationError, match=r"a\.png.*cannot be read as an image"):
        open_feeds(tmp_path, IMAGE, preprocess="unit").load(0)


def test_scripts(tmp_path: Path) -> None:
    script = tmp_path / "calib.py"
    script.write_text(
        "import numpy as np\n"
        "def load_data():\n    for i in range(3): yield {'x': np.full((1, 3, 8, 8), i, np.float32)}\n"
        "def broken():\n    raise KeyError('oops')\n"
    )
    feeds = open_feeds(f"{script}", IMAGE)
    assert [float(f["x"].max()) for f in feeds] == [0, 1, 2]
    assert [float(f["x"].max()) for f in feeds] == [0, 1, 2]
    with pytest.raises(CalibrationError, match="raised KeyError"):
        open_feeds(f"{script}:broken", IMAGE)
    with pytest.raises(CalibrationError, match="no function 'nothing'"):
        open_feeds(f"{script}:nothing", IMAGE)


def test_images_need_a_recipe_and_follow_it(tmp_path: Path) -> None:
    Image.new("RGB", (16, 8), (255, 0, 51)).save(tmp_path / "red.png")
    with pytest.raises(OptionError, match="--preprocess"):
        open_feeds(tmp_path, IMAGE)
    feed = open_feeds(tmp_path, IMAGE, preprocess="unit").load(0)["x"]
    np.testing.assert_allclose(feed[0, :, 0, 0], [1, 0, 0.2], rtol=1e-6)
    feed = open_feeds(
        tmp_path, IMAGE, preprocess="resize=8x8,bgr,scale=1/255,mean=0.5,std=0.5"
    ).load(0)
    np.testing.assert_allclose(feed["x"][0, :, 0, 0], [-0.6, -1, 1], rtol=1e-6)
    save_preview(feed["x"], tmp_path / "seen.png")
    assert Image.open(tmp_path / "seen.png").size == (8, 8)


def test_recipes() -> None:
    assert parse_preprocess("mean=1,2,3,rgb").mean == (1, 2, 3)
    assert parse_preprocess("mean=1/2/3").mean == (1, 2, 3)
    for name in PRESETS:
        assert parse_preprocess(name).text == name
    for bad in ("imagenett", "resize=", "resize=a", "layout=chw", "scale=1/0"):
        with pytest.raises(OptionError, match="--preprocess"):
            parse_preprocess(bad)


def test_data_hash_follows_content_not_place(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        np.savez(tmp_path / name / f"{name}.npz", x=np.ones((1, 3, 8, 8), np.float32))
    one, two = (open_feeds(tmp_path / n, IMAGE).sha256() for n in ("one", "two"))
    assert one == two
    assert one != open_feeds([np.zeros((1, 3, 8, 8), np.float32)], IMAGE).sha256()


def test_diverse_subset_takes_one_of_each_kind() -> None:
    kinds = [np.full((1, 3, 8, 8), k, np.float32) for k in (0, 5, -5)]
    feeds = open_feeds([kinds[i % 3] for i in range(30)], IMAGE)
    chosen = diverse_indices(feeds, 3)
    assert {float(feeds.load(i)["x"].max()) for i in chosen} == {0, 5, -5}
    assert diverse_indices(feeds, 50) == list(range(30))


def test_diverse_samples_differ_though_their_caches_are_empty() -> None:
    past = np.zeros((1, 2, 0, 4), np.float32)
    data = [{"x": np.full((1, 2), i, np.float32), "past": past} for i in range(9)]
    chosen = diverse_indices(open_feeds(data, specs_of("float[N,2] x, float[N,2,p,4] past")), 3)
    assert len(set(chosen)) == 3


def test_hold_back() -> None:
    assert hold_back(2) == ([0, 1], [0, 1])
    calibration, held = hold_back(16)
    assert held == [3, 7, 11, 15]
    assert not set(calibration) & set(held)
    assert len(hold_back(1000)[1]) == 32
