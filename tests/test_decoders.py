"""Decoders with a cache, in each form that exporters write: compiled, and judged token after token."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, cast

import numpy as np
import onnx
import onnx_ir as oir
import pytest
from click.testing import CliRunner

import qcompile
from qcompile import compiler
from qcompile.backends.ort import max_opset, open_session
from qcompile.backends.ort_bits import has_integer_cache, has_quantization
from qcompile.backends.tables import get_target
from qcompile.cache_scales import _peak
from qcompile.cli import check_command
from qcompile.data.inputs import input_specs
from qcompile.data.text import token_feed
from qcompile.decoding import Reading
from qcompile.fuse_decoders import fuse_decoder
from qcompile.ir.errors import BackendMissingError, OptionError
from qcompile.ir.load import load_model
from qcompile.ir.manager import CompileState, PassManager
from qcompile.job import Job
from qcompile.memory import Room
from qcompile.oldest_runtime import oldest_runtime
from qcompile.options import Options
from qcompile.passes.prepare import prepare_passes
from qcompile.recheck import recheck
from qcompile.rollout import Rollout, find_rollout
from qcompile.subject import open_subject, stored_samples
from qcompile.verdict import GateResult, not_measured

VOCABULARY, LENGTH = 1024, 20

CACHED: dict[str, Any] = {
    "target": "ort-int8-weights",
    "kv_cache": "int8",
    "min_speedup": 1e-6,
    "gate_time": "0.1s",
    "threads": 1,
}


@pytest.fixture(scope="module")
def forms(root: Path) -> ModuleType:
    path = root / "benchmarks" / "decoder_forms.py"
    spec = importlib.util.spec_from_file_location("decoder_forms", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["decoder_forms"] = module
    spec.loader.exec_module(module)
    return module


def tiny(forms: ModuleType, form: str) -> onnx.ModelProto:
    """Two blocks, two query heads to each head of keys."""
    if form == "opset23" and max_opset() < 23:
        pytest.skip("this ONNX Runtime has no opset 23")
    rng = np.random.default_rng(0)
    shapes = {"q": (64, 64), "k": (64, 32), "v": (64, 32), "o": (64, 64)}
    shapes |= {"gate": (64, 128), "up": (64, 128), "down": (128, 64)}
    weights = {"embedding": rng.standard_normal((VOCABULARY, 64)), "norm": np.ones(64)}
    for i in range(2):
        weights |= {f"{i}.{k}": rng.standard_normal(s) / s[0] ** 0.5 for k, s in shapes.items()}
        weights |= {f"{i}.{k}_norm": rng.uniform(0.5, 1.5, 64) for k in ("input", "mlp")}
    config = forms.Config(2, 4, 2, 16, 64, longest=128)
    made: onnx.ModelProto = forms.build(config, lambda n: weights[n].astype(np.float32), form)
    return made


def samples(model: onnx.ModelProto, count: int) -> list[dict[str, np.ndarray]]:
    specs = input_specs(load_model(model).model)
    rng = np.random.default_rng(1)
    return [token_feed(specs, rng.integers(0, VOCABULARY, LENGTH)) for _ in range(count)]


@pytest.mark.parametrize("form", ["plain", "contrib", "opset23"])
def test_a_cache_grows_step_by_step_to_what_one_call_gives(
    forms: ModuleType, form: str, tmp_path: Path
) -> None:
    model = tiny(forms, form)
    onnx.save(model, tmp_path / "m.onnx")
    session = open_session(tmp_path / "m.onnx")
    specs = input_specs(load_model(model).model)
    found = find_rollout(session.inputs, session.outputs, steps=8)
    assert found is not None
    rollout = found.of_decoder(specs)
    assert rollout.decoder == specs
    assert rollout.text() == "a cache of 4 tensors that grows"
    sample = samples(model, 1)[0]
    whole = session.run(sample)
    state: dict[str, np.ndarray] = {}
    rows = []
    for step in range(8):
        outputs = session.run(rollout.feed(step, sample, state))
        state = {into: outputs[out] for out, into in rollout.state.items()}
        rows.append(outputs["logits"])
    assert [len(r[0]) for r in rows] == [LENGTH - 7] + [1] * 7
    joined = np.concatenate(rows, axis=1)
    np.testing.assert_allclose(joined, whole["logits"], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("form", ["plain", "contrib", "opset23"])
def test_a_decoder_with_a_cache_is_compiled_and_judged_over_steps(
    forms: ModuleType, form: str, tmp_path: Path
) -> None:
    model = tiny(forms, form)
    qcompile.compile(
        model,
        target="ort-int8-weights",
        calibration=samples(model, 6),
        output=tmp_path / "out",
        steps=8,
        min_speedup=1e-6,
        gate_time="0.1s",
        threads=1,
    ).check()
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    made = onnx.load(tmp_path / "out" / "model.onnx", load_external_data=False)
    ops = [n.op_type for n in made.graph.node]
    assert ops.count("MatMulNBits") == 11  # k and v are too small to gain anything
    assert ops.count("GatherBlockQuantized") == 1
    assert ops.count("RotaryEmbedding") == (0 if form == "contrib" else 4)
    assert "Expand" not in ops
    steps = [row for row in report["gate"]["steps"] if row["output"] == "logits"]
    assert [row["step"] for row in steps] == [1, 4, 8]
    assert all(row["sqnr_db"] > 20 for row in steps)
    assert report["language"]["decoding"]["cached"]


@pytest.mark.parametrize(
    ("options", "expected", "repeated"),
    [
        ({}, 4, 0),
        ({"min_ort": "1.17"}, 4, 0),
        ({"min_ort": "1.16"}, 0, 0),
        ({"disable": ("fuse-rotary", "group-queries")}, 0, 4),
    ],
)
def test_decoders_are_written_for_the_runtime_as_far_as_is_known_and_wanted(
    forms: ModuleType, options: dict[str, Any], expected: int, repeated: int
) -> None:
    model = load_model(tiny(forms, "plain")).model
    target = get_target("ort-int4")
    PassManager(prepare_passes(contrib=True)).run(CompileState(model, target))
    before = oir.to_proto(model).SerializeToString()
    job = SimpleNamespace(options=Options(**options), prepared=SimpleNamespace(target=target))
    fuse_decoder(cast("Job", job), model)
    made = [n for n in model.graph if n.op_type == "RotaryEmbedding"]
    assert len(made) == expected
    assert sum(n.op_type == "Expand" for n in model.graph) == repeated
    assert oldest_runtime(model).release == ((1, 17) if expected else (1, 12))
    after = oir.to_proto(model).SerializeToString()
    for feed in samples(tiny(forms, "plain"), 2):
        wanted, have = (open_session(m).run(feed) for m in (before, after))
        for name, array in wanted.items():
            np.testing.assert_allclose(have[name], array, rtol=1e-4, atol=1e-4)


def test_states_that_do_not_grow_are_rolled_as_they_were(forms: ModuleType) -> None:
    specs = input_specs(load_model(tiny(forms, "plain")).model)
    found = Rollout({"hn": "h"})
    assert found.of_decoder(specs).decoder == ()
    assert found.feed(3, {"x": 1, "h": 0}, {"h": 2}) == {"x": 1, "h": 2}


def read_behind_it(model: onnx.ModelProto, path: Path, *, behind: bool) -> None:
    """Read in parts, later tokens see what was rounded; in one call not, where it is behind attention."""
    session, sample = open_session(path), samples(model, 6)[0]
    found = find_rollout(session.inputs, session.outputs)
    assert found is not None
    rollout = found.of_decoder(input_specs(load_model(model).model))
    whole = Reading("input_ids", "logits").read(session.run, sample)
    read = Reading("input_ids", "logits", rollout, part=8).read(session.run, sample)
    noise, signal = float(np.square(read - whole).mean()), float(np.square(whole).mean())
    if behind:
        np.testing.assert_allclose(read[:, :8], whole[:, :8], rtol=1e-3, atol=1e-3)
        assert 1e-7 < noise / signal < 1e-2
    else:
        assert noise / signal < 1e-6


@pytest.mark.parametrize(
    ("form", "way"),
    [
        ("plain", "rounded in front of Concat"),
        ("contrib", "inside GroupQueryAttention"),
        ("opset23", "new rows rounded behind Attention"),
    ],
)
def test_a_cache_in_8_bits_is_judged_and_recorded(
    forms: ModuleType, form: str, way: str, tmp_path: Path
) -> None:
    model = tiny(forms, form)
    out = tmp_path / "out"
    if form == "opset23" and not has_quantization(23):
        with pytest.raises(
            BackendMissingError, match="needs QuantizeLinear of the model's opset 23"
        ):
            qcompile.compile(model, output=out, calibration=samples(model, 6), **CACHED)
        assert not out.exists()
        return
    if form == "contrib" and not has_integer_cache():
        way = "rounded behind GroupQueryAttention"
    qcompile.compile(model, output=out, calibration=samples(model, 6), **CACHED).check()
    report = json.loads((out / "report.json").read_text())
    assert report["cache"]["stored"] == {way: 4}
    assert report["cache"]["token_bytes"] == [4 * 4 * 32, 4 * 32]
    scales = 32 if way.startswith("inside") else 2  # by channel, by head
    assert [len(t["scale"]) for t in report["cache"]["tensors"]] == [scales] * 4
    said = next(c["text"] for c in report["gate"]["checks"] if c["name"] == "interface")
    assert "the cache is int8 (4 inputs, past_key_values.0.key to" in said
    made = onnx.load(out / "model.onnx", load_external_data=False)
    ops = [n.op_type for n in made.graph.node]
    assert (ops.count("RotaryEmbedding"), "Expand" in ops) == (0 if form == "contrib" else 4, False)
    kinds = {i.name: i.type.tensor_type.elem_type for i in made.graph.input}
    assert {k for k, v in kinds.items() if v == onnx.TensorProto.INT8} == {
        f"past_key_values.{i}.{part}" for i in range(2) for part in ("key", "value")
    }
    steps = [row for row in report["gate"]["steps"] if row["output"] == "logits"]
    assert [row["step"] for row in steps] == [1, 32, 64]
    assert all(row["sqnr_db"] > 20 for row in steps)
    decoding = report["language"]["decoding"]
    assert decoding["cache_bytes"] == [LENGTH * 512, LENGTH * 128]
    assert decoding["next_tokens"]["agreement"] > 0.8
    assert report["operators"]
    assert not report["left_out"]
    run = [sys.executable, "-I", str(out / "deploy" / "run.py"), "--time", "0.01", "--threads", "1"]
    done = subprocess.run(run, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    read_behind_it(model, out / "model.onnx", behind="behind" in way)
    feeds = stored_samples(out)
    assert feeds[0]["past_key_values.0.key"].dtype == np.float32
    onnx.save(model, tmp_path / "float.onnx")
    again = recheck(open_subject(out), tmp_path / "float.onnx", gate_time=0.1)
    assert {c.state for c in again.checks if c.name == "outputs"} == {"pass"}
    assert not [c.text for c in again.checks if c.state == "fail" and c.name != "speed"]


def test_scales_of_a_cache_are_found_where_float_runs_in_parts(
    forms: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny(forms, "plain")
    data = samples(model, 6)
    monkeypatch.setattr(compiler, "room_for", lambda *_: Room(10**12, 10**9))
    result = qcompile.compile(model, output=tmp_path / "out", calibration=data, **CACHED)
    report = result.report.data
    assert report["verdict"] == "delivered"
    assert report["cache"]["stored"] == {"rounded in front of Concat": 4}
    assert report["gate"]["sqnr_db"] > 20
    assert report["language"] is None


@pytest.mark.parametrize(
    ("target", "message"),
    [("ort-int8", "weight-only targets, not to ort-int8"), ("ort-int4", "has no cache of keys")],
)
def test_a_cache_that_is_not_there_is_refused(
    forms: ModuleType, target: str, message: str, tmp_path: Path
) -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]>
    g (float[n, 64] x) => (float[n, 64] y) { y = MatMul (x, w) }"""
    model = onnx.parser.parse_model(text)
    weight = np.ones((64, 64), np.float32)
    model.graph.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
    feeds = [{"x": np.ones((1, 64), np.float32)}] * 4
    with pytest.raises(OptionError, match=message):
        qcompile.compile(
            model, target=target, calibration=feeds, kv_cache="int8", output=tmp_path / "out"
        )


def test_keys_of_positions_not_seen_have_the_scale_of_those_that_were() -> None:
    angle = np.linspace(0, 0.3, 9)[:, None]
    turned = np.concatenate([np.cos(angle), np.sin(angle)], -1).reshape(1, 1, 9, 2)
    seen = _peak(turned, turned=True, neighbours=False)
    np.testing.assert_allclose(seen.ravel(), [1, 1])
    np.testing.assert_allclose(_peak(turned, turned=True, neighbours=True), seen)
    still = _peak(turned, turned=False, neighbours=False)
    np.testing.assert_allclose(still.ravel(), [1, np.sin(0.3)])


def test_check_rolls_a_growing_cache_too(
    forms: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    onnx.save(tiny(forms, "plain"), tmp_path / "m.onnx")
    np.savez(tmp_path / "s.npz", **samples(tiny(forms, "plain"), 1)[0])
    given: dict[str, Any] = {}

    def keep(*_: object, **named: object) -> GateResult:
        given.update(named)
        return not_measured("not asked")

    monkeypatch.setattr(check_command, "judge", keep)
    path = str(tmp_path / "m.onnx")
    result = CliRunner().invoke(check_command.command, [path, path, "-c", str(tmp_path / "s.npz")])
    assert "NOT MEASURED" in result.output
    assert given["rollout"].decoder
