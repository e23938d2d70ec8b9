"""learned.npz: small, exact, and of one model only."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from qcompile.ir.affine import QParams
from qcompile.ir.errors import OptionError
from qcompile.ir.weights import IntegerWeight
from qcompile.learned_file import LEARNED, read_learned, write_learned
from qcompile.learning import Learned, learn_weights
from tests.learning_models import Subject, subject


@pytest.fixture(scope="module")
def one() -> Subject:
    return subject()


@pytest.fixture(scope="module")
def learned(one: Subject, tmp_path_factory: pytest.TempPathFactory) -> Learned:
    work = tmp_path_factory.mktemp("work")
    return learn_weights(
        one.model, one.state.target, one.ranges, one.plan, one.feeds, work=work, threads=1
    )


def test_what_was_written_is_read_bit_for_bit(
    one: Subject, learned: Learned, tmp_path: Path
) -> None:
    path = tmp_path / LEARNED
    write_learned(path, learned, one.model)
    found = read_learned(path, one.model)
    assert found.weights.keys() == learned.weights.keys()
    for key, weight in learned.weights.items():
        again = found.weights[key]
        np.testing.assert_array_equal(again.values, weight.values)
        assert again.values.dtype == weight.values.dtype
        np.testing.assert_array_equal(again.qparams.scale, weight.qparams.scale)
        np.testing.assert_array_equal(again.qparams.zero_point, weight.qparams.zero_point)
        assert again.qparams.spec == weight.qparams.spec
        assert again.source == weight.source
    assert found.bias_shifts.keys() == learned.bias_shifts.keys()
    for name, shift in learned.bias_shifts.items():
        np.testing.assert_array_equal(found.bias_shifts[name], shift)


def test_equal_contents_are_equal_bytes(one: Subject, learned: Learned, tmp_path: Path) -> None:
    write_learned(tmp_path / "a.npz", learned, one.model)
    turned = replace(learned, weights=dict(reversed(learned.weights.items())))
    write_learned(tmp_path / "b.npz", turned, one.model)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


def test_per_tensor_weights_and_keys_with_an_axis(
    one: Subject, learned: Learned, tmp_path: Path
) -> None:
    weight = learned.weights["w3"]
    spec = replace(
        weight.qparams.spec, granularity=replace(weight.qparams.spec.granularity, axis=None)
    )
    single = QParams(np.asarray(0.02, np.float32), np.asarray(0, np.int8), spec)
    given = Learned({"w3:axis0": IntegerWeight(weight.values, single)})
    write_learned(tmp_path / LEARNED, given, one.model)
    found = read_learned(tmp_path / LEARNED, one.model).weights["w3:axis0"]
    np.testing.assert_array_equal(found.values, weight.values)
    assert found.qparams.scale.shape == ()


def test_another_model_is_refused(one: Subject, learned: Learned, tmp_path: Path) -> None:
    path = tmp_path / LEARNED
    write_learned(path, learned, one.model)
    other = subject("g (float[N,6,8,8] x) => (float[N,8,6,6] y) { y = Conv (x, w1, b1) }")
    with pytest.raises(OptionError, match="speaks of weight 'w2', which this model does not have"):
        read_learned(path, other.model)


def test_other_files_are_refused(one: Subject, tmp_path: Path) -> None:
    path = tmp_path / LEARNED
    path.write_bytes(b"no archive")
    with pytest.raises(OptionError, match=r"is no learned\.npz"):
        read_learned(path, one.model)
    with pytest.raises(OptionError, match=r"is no learned\.npz"):
        read_learned(tmp_path / "nowhere.npz", one.model)
