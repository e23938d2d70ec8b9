"""Shapes that an engine must serve, as people write them."""

from __future__ import annotations

import onnx
import onnx_ir as oir
import pytest

from qcompile.data.inputs import InputSpec, input_specs
from qcompile.ir.errors import OptionError
from qcompile.profiles import asked_shapes, shape_profile


def _inputs(text: str) -> tuple[InputSpec, ...]:
    model = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : 17]> g ({text}) => (float[a, 3] y) {{ y = Identity(x) }}'
    )
    return tuple(input_specs(oir.from_proto(model)))


IMAGE = _inputs("float[n, 3, h, w] x")
TWO = _inputs("float[n, 3] x, float[n] z")


def test_three_shapes_or_one_for_all() -> None:
    assert asked_shapes(["1x3x32x32:1x3x64x64:4x3x96x96"], IMAGE) == {
        "x": ((1, 3, 32, 32), (1, 3, 64, 64), (4, 3, 96, 96))
    }
    assert asked_shapes(["x=2x3", "z=1:2:8"], TWO) == {
        "x": ((2, 3), (2, 3), (2, 3)),
        "z": ((1,), (2,), (8,)),
    }
    assert asked_shapes([], TWO) == {}


def test_inputs_whose_axes_have_the_same_names_follow() -> None:
    inputs = _inputs("float[n, s] x, float[n, s] mask, float[n, t] other, float[2] fixed")
    assert asked_shapes(["x=1x8:2x32:4x128"], inputs) == {
        "x": ((1, 8), (2, 32), (4, 128)),
        "mask": ((1, 8), (2, 32), (4, 128)),
    }


@pytest.mark.parametrize(
    ("text", "inputs", "found"),
    [
        ("2x3", TWO, "the model has the inputs x, z; write NAME=2x3"),
        ("w=2x3", TWO, "the model has no input 'w'; it has x, z"),
        ("x=2x3:4x3", TWO, "needed is MIN:OPT:MAX"),
        ("x=two", TWO, "needed is MIN:OPT:MAX"),
        ("x=2x3x4", TWO, "the least shape 2x3x4 does not fit input"),
        ("x=2x5", TWO, "the least shape 2x5 does not fit input"),
        ("x=4x3:2x3:8x3", TWO, "every dimension must grow"),
    ],
)
def test_what_does_not_fit_is_said(text: str, inputs: tuple[InputSpec, ...], found: str) -> None:
    with pytest.raises(OptionError, match=found):
        asked_shapes([text], inputs)


def test_profiles_span_the_shapes_of_the_samples() -> None:
    shapes = [{"x": (1, 3, 32)}, {"x": (1, 3, 64)}, {"x": (1, 3, 64)}, {"x": (1, 3, 96)}]
    assert shape_profile(shapes) == {"x": ((1, 3, 32), (1, 3, 64), (1, 3, 96))}
