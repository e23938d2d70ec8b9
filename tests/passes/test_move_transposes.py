"""move-transposes: pairs cancel across elementwise nodes, a flattened one goes into the weight."""

from __future__ import annotations

import numpy as np
import pytest

from qcompile.passes.move_transposes import MoveTransposes
from tests.passes.checks import check_passes, parse

HEADER = '<ir_version: 8, opset_import: ["" : 17]>\n'
NUMBERS = """<float k = {2.0}, float[3] v = {1.0, 2.0, 3.0},
    float[2, 1, 3] m = {1.0, 2.0, 3.0, 4.0, 5.0, 6.0}>"""


def model(body: str, output: str = "float[N, 3, 2, 2] y") -> str:
    return f"""{HEADER}g (float[N, 3, 2, 2] x) => ({output}) {NUMBERS} {{
        a = Neg(x)
        b = Transpose<perm = [0, 2, 3, 1]>(a)
        {body}
    }}"""


@pytest.mark.parametrize(
    ("chain", "expect"),
    [
        ("c = Relu(b)", ["Relu"]),
        ("d = Mul(k, b)\n c = Sigmoid(d)", ["Mul", "Sigmoid"]),
        ("c = Add(b, v)", ["Add"]),
        ("c = Sub(m, b)", ["Sub"]),
    ],
)
def test_a_pair_cancels(chain: str, expect: list[str]) -> None:
    text = model(f"{chain}\n e = Transpose<perm = [0, 3, 1, 2]>(c)\n y = Abs(e)")
    check_passes(parse(text), MoveTransposes(), ["Neg", *expect, "Abs"])


@pytest.mark.parametrize(
    "body",
    [
        "c = Relu(b)\n e = Transpose<perm = [0, 2, 1, 3]>(c)\n y = Abs(e)",
        "c = Softmax<axis = -1>(b)\n e = Transpose<perm = [0, 3, 1, 2]>(c)\n y = Abs(e)",
        "c = Relu(b)\n d = Neg(b)\n f = Add(c, d)\n e = Transpose<perm = [0, 3, 1, 2]>(f)\n y = Abs(e)",
        "c = Relu(b)\n y = Transpose<perm = [0, 3, 1, 2]>(c)",
    ],
)
def test_left_alone(body: str) -> None:
    check_passes(parse(model(body, "float[N, A, B, C] y")), MoveTransposes(), changed=False)


@pytest.mark.parametrize("target", ["-1, 12", "0, 12", "0, -1"])
@pytest.mark.parametrize("layer", ["MatMul(f, w)", "Gemm(f, w)", "Gemm<transB = 1>(f, u)"])
def test_into_the_weight_behind_a_flattening(target: str, layer: str) -> None:
    rng = np.random.default_rng(0)
    w = rng.normal(size=(12, 5)).astype(np.float32)
    text = model(f"f = Reshape(b, t)\n y = {layer}", "float[N, 5] y")
    text = text.replace("<float k", f"<int64[2] t = {{{target}}}, float k")
    made = parse(text, w=w, u=np.ascontiguousarray(w.T))
    check_passes(
        made,
        MoveTransposes(),
        ["Neg", "Reshape", layer.split("(", maxsplit=1)[0].split("<", maxsplit=1)[0]],
    )


@pytest.mark.parametrize(
    ("axis", "perm", "unit"),
    [
        (4, [0, 3, 1, 2, 4], 4),
        (3, [0, 4, 1, 2, 3], 4),
        (0, [0, 1, 4, 2, 3], 0),
        (1, [0, 4, 2, 1, 3], 3),
    ],
)
def test_an_unsqueeze_on_the_way(axis: int, perm: list[int], unit: int) -> None:
    text = model(
        f"c = Mul(b, v)\n d = Unsqueeze(c, axis)\n e = Transpose<perm = {perm}>(d)\n y = Abs(e)",
        "float[A, B, C, D, E] y",
    ).replace("<float k", f"<int64[1] axis = {{{axis}}}, float k")
    after = check_passes(parse(text), MoveTransposes(), ["Neg", "Mul", "Unsqueeze", "Abs"])
    unsqueeze = list(after.graph)[2]
    assert unsqueeze.inputs[1] is not None and unsqueeze.inputs[1].const_value is not None
    assert unsqueeze.inputs[1].const_value.numpy().tolist() == [unit]
