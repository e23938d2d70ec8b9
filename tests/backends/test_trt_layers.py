"""The builder's list of layers is read, and a format that is not known is never an empty answer."""

from __future__ import annotations

import pytest

from qcompile.backends.trt_layers import read_layers, realised_precision
from qcompile.ir.errors import BackendMissingError


def _tensors(title: str, *types: str) -> str:
    if not types:
        return ""
    listed = ", ".join(
        f"{{ Name: t, Dimensions: [1,3], Datatype: {t}, Format: (L) }}" for t in types
    )
    return f"{title}: [ {listed}], "


def _line(
    name: str, kind: str, inputs: list[str], constants: list[str], output: str, nodes: list[str]
) -> str:
    held = _tensors("Inputs", *inputs) + _tensors("Constants", *constants)
    metadata = "".join(f"[ONNX Layer: {n}]" for n in nodes)
    return (
        f"Name: {name}, LayerType: {kind}, {held}{_tensors('Outputs', output)}"
        f"TacticName: t, StreamId: 0, Metadata: {metadata}"
    )


LOG = "\n".join(
    (
        "Layers:",
        _line("quant", "kgen", ["Float"], ["Float"], "Int8", ["x_Q", "/conv, one"]),
        _line("conv", "correlation", ["Int8"], ["Int8", "Float"], "Half", ["/conv, one"]),
        _line("mm", "gemm", ["Half", "Half"], [], "Half", ["mm"]),
    )
)


def test_types_and_nodes_of_every_layer_are_read() -> None:
    layers = read_layers(["noise", LOG])
    assert [layer.kind for layer in layers] == ["kgen", "correlation", "gemm"]
    assert layers[1].inputs == ("Int8",)
    assert layers[1].constants == ("Int8", "Float")
    assert layers[1].outputs == ("Half",)
    assert layers[0].nodes == ("x_Q", "/conv, one")
    assert layers[0].generated


def test_a_nodes_own_kernel_decides_not_the_one_that_quantizes_its_input() -> None:
    layers = read_layers([LOG])
    assert realised_precision(layers, "/conv, one") == "int8"
    assert realised_precision(layers, "mm") == "fp16"
    assert realised_precision(layers, "unknown") == ""


@pytest.mark.parametrize("log", [[], ["Layers:\nsomething else entirely"], ["no list"]])
def test_a_log_that_cannot_be_read_is_an_error(log: list[str]) -> None:
    with pytest.raises(BackendMissingError, match="what was realised is unknown"):
        read_layers(log)


def test_one_constant_of_few_bits_is_a_weight_that_the_kernel_dequantizes() -> None:
    lines = (
        _line("fc", "runtime_fusion", ["Half"], ["Int4", "Half"], "Half", ["fc"]),
        _line("head", "runtime_fusion", ["Half"], ["Half", "Int8"], "Half", ["head"]),
        _line("dq", "kgen", [], ["Int4", "Half"], "Half", ["o_DQ"]),
        _line("o", "gemm", ["Half", "Half"], [], "Half", ["o"]),
    )
    layers = read_layers(["\n".join(("Layers:", *lines))])
    found = [realised_precision(layers, name) for name in ("fc", "head", "o")]
    assert found == ["int4-weights", "int8-weights", "fp16"]
