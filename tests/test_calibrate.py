"""Calibration of tiny models end to end: exact limits, one pass, errors with names, a file to reuse."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import onnx.reference
import onnx_ir as oir
import pytest

import qcompile.calibrate as calibrating
from qcompile.calibrate import Calibration, calibrate
from qcompile.ir.errors import BudgetError, CalibrationError, OptionError, OutputError

Feed = dict[str, np.ndarray]


def parse(text: str) -> oir.Model:
    proto = onnx.shape_inference.infer_shapes(onnx.parser.parse_model(text))
    return oir.from_proto(proto)


NET = """<ir_version: 8, opset_import: ["" : 17]>
g (float[n,3,h,w] x) => (float[n,4,h,w] z)
{
    k = Constant<value_float = 0.5>()
    weight = RandomNormal<shape = [4, 3, 3, 3], seed = 1.0>()
    y = Conv<pads = [1, 1, 1, 1]>(x, weight)
    r = Relu(y)
    z = Mul(r, k)
}"""
"""RandomNormal with a seed gives other weights in every run; see ``net``."""


def net() -> oir.Model:
    weights = np.random.default_rng(3).normal(size=(4, 3, 3, 3)).astype(np.float32)
    text = NET.replace("    weight = RandomNormal<shape = [4, 3, 3, 3], seed = 1.0>()\n", "")
    numbers = ", ".join(f"{v:.6f}" for v in weights.ravel())
    text = text.replace("z)\n{", f"z)\n<float[4,3,3,3] weight = {{{numbers}}}>\n{{", 1)
    return parse(text)


def feeds(count: int, seed: int = 0, size: int = 24) -> list[Feed]:
    rng = np.random.default_rng(seed)
    sizes = [(size, size + 8 * (i % 3)) for i in range(count)]
    return [{"x": rng.normal(size=(1, 3, *s)).astype(np.float32)} for s in sizes]


TENSORS = ["x", "r"]


def directly(model: oir.Model, data: list[Feed]) -> dict[str, tuple[float, float]]:
    reference = onnx.reference.ReferenceEvaluator(oir.to_proto(model))
    seen = [reference.run(None, feed)[0] * 2 for feed in data]
    return {
        "x": (min(f["x"].min() for f in data), max(f["x"].max() for f in data)),
        "r": (min(v.min() for v in seen), max(v.max() for v in seen)),
    }


def test_min_max_is_exact_over_variable_shapes() -> None:
    model, data = net(), feeds(9)
    before = oir.to_proto(model).SerializeToString()
    found = calibrate(model, TENSORS, data, method="minmax", threads=1).ranges()
    for name, (low, high) in directly(model, data).items():
        assert float(found[name].low) == pytest.approx(low, rel=1e-5)
        assert float(found[name].high) == pytest.approx(high, rel=1e-5)
    assert oir.to_proto(model).SerializeToString() == before


def test_every_estimator_reads_one_pass_over_an_iterator() -> None:
    model, data = net(), feeds(16)
    taken: list[int] = []

    def stream() -> Iterator[Feed]:
        for i, feed in enumerate(data):
            taken.append(i)
            yield feed

    told: list[tuple[int, int | None]] = []
    found = calibrate(
        model, TENSORS, stream(), threads=1, progress=lambda done, total: told.append((done, total))
    )
    assert taken == list(range(16))
    assert told == [(i + 1, None) for i in range(16)]
    limits = directly(model, data)
    for method in ("minmax", "percentile", "percentile-99", "entropy", "mse", "auto"):
        for name, chosen in found.ranges(method).items():
            assert min(limits[name][0], 0) - 1e-5 <= chosen.low <= chosen.high
            assert chosen.high <= limits[name][1] + 1e-5
    assert found.ranges()["r"].method == found.ranges("auto")["r"].method
    assert found.ranges("percentile-99")["x"].high < found.ranges("minmax")["x"].high


def test_samples_are_spread_over_all_channels_and_large_tensors_are_thinned() -> None:
    model = net()
    data = feeds(8, size=240)
    found = calibrate(model, TENSORS, data, threads=1)
    for name, channels in (("x", 3), ("r", 4)):
        store = found.fit[name]
        assert store.elements == sum(
            channels * f["x"].size // 3 for i, f in enumerate(data) if i % 4 != 3
        )
        assert store.histogram.total < store.elements / 10
    # a channel that alone holds values above 50 is met in its proportion
    for feed in data:
        feed["x"][:, 1] += 100
    store = calibrate(model, ["x"], data, threads=1).fit["x"]
    upper = store.histogram.counts[store.histogram.edges[:-1] > 50].sum()
    assert upper / store.histogram.total == pytest.approx(1 / 3, abs=0.02)


def test_feeds_much_larger_than_the_first_are_drawn_less_but_weigh_the_same() -> None:
    data = feeds(1, size=24) + [f for i in range(7) for f in feeds(1, seed=i, size=400)]
    found = calibrate(net(), ["x"], data, threads=1)
    for stores in (found.fit, found.held):
        assert stores["x"].sampled_share == pytest.approx(1, abs=0.15)


def test_every_fourth_feed_judges_if_there_are_eight() -> None:
    few = calibrate(net(), TENSORS, feeds(7), threads=1)
    assert few.held == {}
    assert few.samples == 7
    eight = feeds(8)
    eight[3]["x"] += 100
    found = calibrate(net(), TENSORS, eight, threads=1)
    assert found.held["x"].high > 100 > found.fit["x"].high
    assert found.ranges("minmax")["x"].high > 100


@pytest.mark.parametrize("opset", [9, 12, 18])
def test_old_and_new_opsets(opset: int) -> None:
    model = parse(
        f"""<ir_version: 4, opset_import: ["" : {opset}]>
        g (float[n,50] x) => (float[n,50] y) {{ y = Relu(x) }}"""
    )
    rng = np.random.default_rng(0)
    data = [{"x": rng.normal(size=(40 * (i + 1), 50)).astype(np.float32)} for i in range(8)]
    found = calibrate(model, ["y"], data, threads=1)
    assert found.fit["y"].high == max(d["x"].max() for i, d in enumerate(data) if i % 4 != 3)
    assert found.fit["y"].histogram.zeros / found.fit["y"].histogram.total == pytest.approx(
        0.5, abs=0.05
    )


def test_half_precision_models() -> None:
    model = parse(
        """<ir_version: 8, opset_import: ["" : 17]>
        g (float16[n] x) => (float16[n] y) { y = Add(x, x) }"""
    )
    found = calibrate(model, ["y"], [{"x": np.array([-1, 2.5], np.float16)}], threads=1)
    assert (found.fit["y"].low, found.fit["y"].high) == (-2, 5)


def test_tensors_with_the_same_elements_are_observed_once() -> None:
    model = parse(
        """<ir_version: 8, opset_import: ["" : 13]>
        g (float[2,n] x) => (float[n,2] z) {
            y = Relu(x)
            t = Transpose(y)
            flat = Constant<value_ints = [-1]>()
            r = Reshape(t, flat)
            z = Identity(t)
        }"""
    )
    data = [
        {"x": np.random.default_rng(i).normal(size=(2, 9)).astype(np.float32)} for i in range(9)
    ]
    found = calibrate(model, ["r", "x", "t", "y"], data, threads=1)
    assert list(found.fit) == ["x", "y"]
    ranges = found.ranges()
    assert list(ranges) == ["r", "x", "t", "y"]
    assert ranges["r"] == ranges["t"] == ranges["y"] != ranges["x"]


SOMETIMES_EMPTY = """<ir_version: 8, opset_import: ["" : 17]>
g (float[n] x) => (float[m] y) {
    zero = Constant<value_float = 0.0>()
    c = Greater(x, zero)
    y = Compress(x, c)
}"""


def test_tensors_that_are_empty_in_some_feeds() -> None:
    data = [{"x": np.array(v, np.float32)} for v in ([-1, -2], [3, -1, 2])]
    found = calibrate(parse(SOMETIMES_EMPTY), ["y"], data, threads=1)
    assert (found.fit["y"].low, found.fit["y"].high) == (2, 3)
    nothing = calibrate(parse(SOMETIMES_EMPTY), ["y"], data[:1], threads=1).ranges()["y"]
    assert (float(nothing.low), float(nothing.high)) == (0, 0)


LOG = """<ir_version: 8, opset_import: ["" : 17]>
g (float[n] x) => (float[n] z) { y = Log(x) z = Exp(y) }"""


@pytest.mark.parametrize("method", ["minmax", "auto"])
def test_nan_names_sample_and_first_tensor(method: str) -> None:
    good, evil = np.ones(100, np.float32), np.ones(100, np.float32)
    evil[57] = -1
    data = [{"x": good}, {"x": good}, {"x": evil}]
    with pytest.raises(CalibrationError, match="sample 2: tensor 'y' holds NaN"):
        calibrate(parse(LOG), ["z", "y", "x"], data, method=method, threads=1)


BOTH_SIGNS = """<ir_version: 8, opset_import: ["" : 17]>
g (float[n] x) => (float[n] z) <float zero = {0}> { y = Div(x, zero) z = Atan(y) }"""


@pytest.mark.parametrize("method", ["minmax", "auto"])
def test_infinity_is_no_fault_of_the_data_but_has_no_range(method: str) -> None:
    zero, some = np.zeros(100, np.float32), np.ones(100, np.float32)
    some[3] = -1
    found = calibrate(parse(LOG), ["z", "y", "x"], [{"x": zero}], method=method, threads=1)
    assert sorted(found.ranges()) == ["x", "z"]
    assert found.unusable == {"y": "sample 0 makes it infinite"}
    both = calibrate(parse(BOTH_SIGNS), ["y"], [{"x": some}], method=method, threads=1)
    assert both.unusable == {"y": "sample 0 makes it infinite"}


def test_tensors_that_are_not_finite_can_be_left_without_range() -> None:
    data = [{"x": np.arange(-1, 3, dtype=np.float32)} for _ in range(8)]
    found = calibrate(parse(LOG), ["x", "y"], data, threads=1, without_nan=["x"])
    assert list(found.ranges()) == ["x"]
    assert found.unusable == {"y": "sample 0 makes it NaN"}
    assert any("no range for 1 tensors: y" in text for text in found.findings())


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_in_data_name_the_sample_and_the_input(bad: float) -> None:
    data = feeds(3)
    data[1]["x"][0, 2, 3, 4] = bad
    with pytest.raises(CalibrationError, match="sample 1: input 'x' holds NaN or infinity"):
        calibrate(net(), TENSORS, data, threads=1)


def test_samples_are_called_by_their_names() -> None:
    class Named(list):  # type: ignore[type-arg]
        names = ("a.png", "b.png")

    data = Named(feeds(2))
    data[1]["x"][:] = np.nan
    with pytest.raises(CalibrationError, match=r"sample 1 \(b\.png\): input 'x'"):
        calibrate(net(), TENSORS, data, threads=1)


def test_data_that_do_not_fit_are_refused() -> None:
    model = net()
    with pytest.raises(CalibrationError, match="data are empty"):
        calibrate(model, TENSORS, [], threads=1)
    with pytest.raises(CalibrationError, match="sample 0 has no input 'x'; it has image"):
        calibrate(model, TENSORS, [{"image": feeds(1)[0]["x"]}], threads=1)
    with pytest.raises(CalibrationError, match="sample 0 does not run"):
        calibrate(model, TENSORS, [{"x": np.zeros((1, 3, 8, 8), np.float64)}], threads=1)
    with pytest.raises(CalibrationError, match="sample 1 does not run"):
        calibrate(model, TENSORS, [*feeds(1), {"x": np.zeros((3, 8), np.float32)}], threads=1)


def test_other_refusals() -> None:
    with pytest.raises(OptionError, match="'best' is unknown"):
        calibrate(net(), TENSORS, feeds(1), method="best", threads=1)
    with pytest.raises(CalibrationError, match="'nothing' cannot be observed"):
        calibrate(net(), ["nothing"], feeds(1), threads=1)
    with pytest.raises(BudgetError, match=r"above the limit of 1 MB; raise --memory-limit"):
        calibrate(net(), TENSORS, feeds(1), threads=1, memory_limit=1_000_000)
    found = calibrate(net(), TENSORS, feeds(1), method="minmax", threads=1)
    with pytest.raises(CalibrationError, match="'mse' needs histograms"):
        found.ranges("mse")


def test_no_tensor_to_observe_is_no_error() -> None:
    found = calibrate(net(), [], feeds(2), threads=1)
    assert found.ranges() == {}
    assert found.findings() == ()


def test_large_models_go_through_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    inside = calibrate(net(), TENSORS, feeds(8), threads=1).ranges()
    monkeypatch.setattr(calibrating, "_INSIDE", 0)
    assert calibrate(net(), TENSORS, feeds(8), threads=1).ranges() == inside


def test_convergence_is_told() -> None:
    steady = [{"x": np.linspace(-1, 1, 3 * 24 * 24, dtype=np.float32).reshape(1, 3, 24, 24)}] * 16
    found = calibrate(net(), TENSORS, steady, threads=1)
    assert found.findings() == ("8 of 16 samples were enough",)
    moving = [{"x": f["x"] * (i + 1)} for i, f in enumerate(steady)]
    found = calibrate(net(), TENSORS, moving, method="minmax", threads=1)
    assert found.convergence is not None
    assert set(found.convergence.moving) == {"x", "r"}
    assert "still moving after 16 samples: 2 of 2 tensors" in found.findings()[0]
    few = calibrate(net(), TENSORS, steady[:9], threads=1)
    assert few.findings() == ("9 samples are too few to tell whether ranges have settled",)


def test_held_back_clipping_is_told() -> None:
    data = feeds(16)
    for i in range(3, 16, 4):
        data[i]["x"] *= 5
    found = calibrate(net(), TENSORS, data, threads=1)
    assert found.convergence is not None
    assert found.convergence.clipped["x"] > 0.1
    assert any("held-back samples are clipped in 2 tensors: " in text for text in found.findings())


def test_the_file_gives_everything_back_and_the_same_bytes(tmp_path: Path) -> None:
    found = calibrate(
        net(), TENSORS, feeds(16), threads=1, model_sha256="m" * 64, data_sha256="d" * 64
    )
    found.save(tmp_path / "a.npz")
    calibrate(
        net(), TENSORS, feeds(16), threads=1, model_sha256="m" * 64, data_sha256="d" * 64
    ).save(tmp_path / "b.npz")
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    loaded = Calibration.load(tmp_path / "a.npz", model_sha256="m" * 64, data_sha256="d" * 64)
    for method in ("auto", "minmax", "percentile", "entropy", "mse"):
        assert loaded.ranges(method) == found.ranges(method)
    assert loaded.findings() == found.findings()
    assert loaded.spec == found.spec
    loaded.save(tmp_path / "c.npz")
    assert (tmp_path / "c.npz").read_bytes() == (tmp_path / "a.npz").read_bytes()
    with np.load(tmp_path / "a.npz") as plain:
        assert plain["high"].tolist() == [float(r.high) for r in found.ranges().values()]
    assert {p.name for p in tmp_path.iterdir()} == {"a.npz", "b.npz", "c.npz"}


def test_a_file_of_other_model_or_data_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "ranges.npz"
    calibrate(net(), TENSORS, feeds(2), threads=1, model_sha256="m" * 64).save(path)
    with pytest.raises(CalibrationError, match=r"another model \(sha256 mmmmmmmmmmmm, here xxx"):
        Calibration.load(path, model_sha256="x" * 64)
    with pytest.raises(CalibrationError, match=r"another data \(sha256 not recorded"):
        Calibration.load(path, data_sha256="x" * 64)
    assert Calibration.load(path, model_sha256="m" * 64).samples == 2


def test_what_is_no_ranges_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match="does not exist"):
        Calibration.load(tmp_path / "none.npz")
    (tmp_path / "text.npz").write_text("hello")
    np.savez(tmp_path / "other.npz", x=np.zeros(3))
    good = tmp_path / "good.npz"
    calibrate(net(), TENSORS, feeds(2), threads=1).save(good)
    (tmp_path / "cut.npz").write_bytes(good.read_bytes()[:-100])
    for name in ("text", "other", "cut"):
        with pytest.raises(CalibrationError, match="is no ranges file that qcompile wrote"):
            Calibration.load(tmp_path / f"{name}.npz")
    with pytest.raises(OutputError, match="cannot be written"):
        Calibration.load(good).save(tmp_path / "no" / "folder.npz")


def test_what_callers_read_is_whole_in_range_and_in_the_findings() -> None:
    """One high score in a thousand: every estimator would clip it, and tell that it does."""
    model = parse(
        """<ir_version: 8, opset_import: ["" : 17]>
        g (float[n,1000] x) => (float[n,1000] p) { r = Relu(x) l = Neg(r) p = Sigmoid(l) }"""
    )
    rng = np.random.default_rng(0)
    data = [{"x": rng.uniform(3, 40, size=(1, 1000)).astype(np.float32)} for _ in range(32)]
    data[3]["x"][0, 0] = 0.0  # the fourth sample is held back
    found = calibrate(model, ["r", "l", "p"], data)
    for method in ("auto", "mse", "percentile-99.9"):
        limits = found.ranges(method)
        assert (float(limits["p"].high), limits["p"].method) == (0.5, "minmax")
        assert (float(limits["l"].low), float(limits["l"].high)) == (-8.0, 0.0)
    assert found.convergence is not None
    assert "p" not in found.convergence.moving
    named = calibrate(model, ["p"], data, method="percentile-99.9").ranges()
    assert float(named["p"].high) < 0.5
