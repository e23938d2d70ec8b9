"""Decoders with a cache, in each form that exporters write: compiled, and judged token after token."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import pytest

import qcompile
from qcompile.backends.ort import max_opset, open_session
from qcompile.data.inputs import input_specs
from qcompile.data.text import token_feed
from qcompile.ir.load import load_model
from qcompile.rollout import Rollout, find_rollout

VOCABULARY, LENGTH = 1024, 20


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
    config = forms.Config(2, 4, 2, 16, 64, longest=64)
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
    steps = [row for row in report["gate"]["steps"] if row["output"] == "logits"]
    assert [row["step"] for row in steps] == [1, 4, 8]
    assert all(row["sqnr_db"] > 20 for row in steps)
    assert report["language"]["decoding"]["cached"]


def test_states_that_do_not_grow_are_rolled_as_they_were(forms: ModuleType) -> None:
    specs = input_specs(load_model(tiny(forms, "plain")).model)
    found = Rollout({"hn": "h"})
    assert found.of_decoder(specs).decoder == ()
    assert found.feed(3, {"x": 1, "h": 0}, {"h": 2}) == {"x": 1, "h": 2}
