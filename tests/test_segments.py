"""Float models that do not fit in memory: cut into parts, run part by part, judged all the same."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given
from hypothesis import strategies as st

import qcompile
from qcompile import compiler
from qcompile.ir.load import load_model
from qcompile.ir.on_disk import kept, large_on_disk
from qcompile.memory import Room, allowed_bytes, room_for
from qcompile.segmented import SegmentedSession
from qcompile.segments import cut_points
from qcompile.trace import shapes_seen

WIDTH, LAYERS, VOCABULARY = 64, 4, 1024


def text() -> str:
    """A residual stack; between two blocks one tensor lives, within one three."""
    rows = ["x0 = Gather (embedding, ids)"]
    for i in range(LAYERS):
        rows += [
            f"a{i} = MatMul (x{i}, up{i})",
            f"s{i} = Sigmoid (a{i})",
            f"g{i} = Mul (a{i}, s{i})",
            f"d{i} = MatMul (g{i}, down{i})",
            f"x{i + 1} = Add (x{i}, d{i})",
        ]
    rows += ["turned = Transpose <perm = [1, 0]> (embedding)"]
    rows += [f"logits = MatMul (x{LAYERS}, turned)"]
    return (
        '<ir_version: 8, opset_import: ["" : 17]>\n'
        f"lm (int64[batch, seq] ids) => (float[batch, seq, {VOCABULARY}] logits) {{"
        + "\n".join(rows)
        + "}"
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    proto = onnx.parser.parse_model(text())
    rng = np.random.default_rng(0)
    shapes = {"embedding": (VOCABULARY, WIDTH)}
    for i in range(LAYERS):
        shapes |= {f"up{i}": (WIDTH, 256), f"down{i}": (256, WIDTH)}
    for name, shape in shapes.items():
        array = rng.standard_normal(shape) / 8
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array.astype("f"), name))
    onnx.save(proto, tmp_path / "model.onnx", save_as_external_data=True, location="model.data")
    return tmp_path / "model.onnx"


def feeds(count: int) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(1)
    return [{"ids": rng.integers(0, VOCABULARY, (1, 24 + i % 2))} for i in range(count)]


def test_cuts_lie_between_blocks() -> None:
    graph = onnx.parser.parse_model(text()).graph
    reads = [list(n.input) for n in graph.node]
    writes = [list(n.output) for n in graph.node]
    sizes = {"embedding": 10} | {f"{k}{i}": 4 for i in range(LAYERS) for k in ("up", "down")}
    # 18 bytes hold the embedding and a block, two blocks and half of one, or a block and the head
    cuts = cut_points(reads, writes, sizes, 18, ["logits"])
    assert [writes[stop - 1][0] for stop in cuts] == ["x1", "x3", "logits"]


@given(
    st.lists(st.integers(0, 5), min_size=1, max_size=30),
    st.integers(1, 12),
)
def test_every_node_is_in_one_part_and_no_part_is_too_heavy(heavy: list[int], limit: int) -> None:
    reads = [[f"t{i}", f"w{i}"] for i in range(len(heavy))]
    writes = [[f"t{i + 1}"] for i in range(len(heavy))]
    sizes = {f"w{i}": size for i, size in enumerate(heavy)}
    cuts = cut_points(reads, writes, sizes, limit, [f"t{len(heavy)}"])
    assert cuts[-1] == len(heavy)
    assert cuts == sorted(set(cuts))
    for start, stop in zip([0, *cuts], cuts, strict=False):
        assert stop - start == 1 or sum(heavy[start:stop]) <= limit


def test_parts_give_what_the_whole_gives(path: Path, tmp_path: Path) -> None:
    model = load_model(path).model
    samples = feeds(3)
    parts = SegmentedSession(model, samples, tmp_path / "float", 1 << 17, why="it is a test")
    whole = ort.InferenceSession(path)
    assert [(p.name, p.type, p.shape) for p in parts.inputs] == [
        ("ids", "tensor(int64)", ("batch", "seq"))
    ]
    assert parts.outputs[0].type == "tensor(float)"
    for feed in [*samples, feeds(4)[-1]]:
        wanted = whole.run(None, feed)[0]
        np.testing.assert_allclose(parts.run(feed)["logits"], wanted, rtol=1e-4, atol=1e-5)
    assert (
        sum(p.is_dir() for p in (tmp_path / "float").iterdir()) == 4
    )  # one for each feed, no more


def test_shapes_are_seen_in_parts_too(path: Path, tmp_path: Path) -> None:
    model = load_model(path).model
    names = ["ids", "a0", "x2", "logits"]
    found = shapes_seen(model, names, feeds(1)[0], tmp_path, part=1 << 17)
    assert found == shapes_seen(model, names, feeds(1)[0], tmp_path)
    assert found["logits"] == (1, 24, VOCABULARY)


def test_room_is_the_least_of_all_limits(path: Path) -> None:
    model = load_model(path).model
    assert allowed_bytes(1000) == 1000
    assert room_for(model, None).fits
    tight = room_for(model, 1_000_000)
    assert not tight.fits
    assert "0.0 GB may be had" in tight.text()
    assert tight.part == 1 << 20


def test_weights_that_passes_make_lie_on_disk(tmp_path: Path) -> None:
    large, small = np.ones((1024, 512), np.float32).T, np.ones((3, 2), np.float32).T
    with large_on_disk(tmp_path / "made"):
        found = [kept(large), kept(small)]
    assert isinstance(found[0].base, np.memmap)
    assert not isinstance(found[1].base, np.memmap)
    assert len(list((tmp_path / "made").iterdir())) == 1
    for one, wanted in zip(found, (large, small), strict=True):
        np.testing.assert_array_equal(one, wanted)
        assert one.flags.c_contiguous
    assert not isinstance(kept(large).base, np.memmap)


def compiled(path: Path, monkeypatch: pytest.MonkeyPatch, **options: object) -> dict[str, object]:
    """With float that is said not to fit."""

    def no_room(model: object, limit: int | None) -> Room:
        return Room(10**12, limit or 10**9)

    monkeypatch.setattr(compiler, "room_for", no_room)
    out = path.parent / "out"
    result = qcompile.compile(
        path,
        target="ort-int4",
        calibration=feeds(12),
        output=out,
        gate_time="0.1s",
        threads=1,
        min_sqnr=5,
        **options,
    )
    report: dict[str, object] = json.loads((out / "report.json").read_text())
    return {"code": result.exit_code, **report}


def test_a_model_without_room_is_judged_and_the_verdict_says_what_was_not_measured(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = compiled(path, monkeypatch)
    assert report["verdict"] == "delivered"
    headline = str(report["headline"])
    assert headline.count("not held against float, which was run in parts") == 1
    assert "it needs about 1000.0 GB of memory and 1.0 GB may be had" in headline
    gate = report["gate"]
    assert isinstance(gate, dict)
    assert gate["speed"] is None
    assert gate["sqnr_db"] > 5
    assert report["integer_mac_share"] == 1.0


def test_measured_is_not_met_without_floats_speed(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = compiled(path, monkeypatch, require="measured", algorithm="rtn")
    assert report["code"] == 4
    assert "speed was not compared" in str(report["headline"])
