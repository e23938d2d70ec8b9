"""What an engine is made of, read from the builder's own list of its layers.

With detailed verbosity the builder logs one message that starts with ``Layers:``, a line a layer:
name, kind, the type of each input, constant and output, and the ONNX nodes in it. The format is not
documented; a list of which no line can be read is an error, never an empty answer.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from qcompile.ir.errors import BackendMissingError

__all__ = ["EngineLayer", "read_layers", "realised_precision"]

_LINE = re.compile(
    r"^Name: (?P<name>.*?), LayerType: (?P<kind>\w+), Inputs: (?P<inputs>.*?), "
    r"(?:Constants: (?P<constants>.*?), )?Outputs: (?P<outputs>.*?), TacticName: ",
)
_TYPE = re.compile(r"Datatype: (\w+)")
_NODE = re.compile(r"\[ONNX Layer: ([^\]]*)\]")
_GENERATED = ("kgen", "move", "shape_call", "copy", "reformat", "constant", "signal", "wait")
"""Kinds that compute element by element or move data: they quantize, they do not multiply."""
_FEW_BITS = {"FP4E2M1": "nvfp4", "Int8": "int8", "FP8": "fp8", "Float8": "fp8", "FP8E4M3": "fp8"}
_STORED = {"Int4": "int4-weights", "Int8": "int8-weights"}
"""Constants that a kernel with float operands dequantizes itself."""
_FLOATS = {"Float": "float", "Half": "fp16", "BFloat16": "bf16", "BF16": "bf16"}


@dataclass(frozen=True)
class EngineLayer:
    """One kernel of an engine.

    Attributes:
        name: of the layer.
        kind: "correlation" (a convolution), "gemm", "kgen" (generated pointwise), ...
        inputs: types of what it reads at run time.
        constants: types of what is baked in.
        outputs: types of what it writes.
        nodes: names of the ONNX nodes in it.
    """

    name: str
    kind: str
    inputs: tuple[str, ...]
    constants: tuple[str, ...]
    outputs: tuple[str, ...]
    nodes: tuple[str, ...]

    @property
    def generated(self) -> bool:
        """Whether it is pointwise or moves data."""
        return self.kind in _GENERATED

    @property
    def precision(self) -> str:
        """Type of what it multiplies: two operands of 4 or 8 bits make it such a kernel.

        One constant of few bits beside float operands makes it a kernel with such weights.
        """
        read = (*self.inputs, *self.constants)
        for kind, name in _FEW_BITS.items():
            if read.count(kind) >= 2:
                return name
        if not self.generated:
            for kind, name in _STORED.items():
                if kind in self.constants:
                    return name
        return next((_FLOATS[t] for t in read if t in _FLOATS), "float")


def read_layers(messages: Iterable[str]) -> tuple[EngineLayer, ...]:
    """The layers in the builder's log.

    Raises:
        BackendMissingError: the log holds no list, or none of its lines can be read.
    """
    layers: list[EngineLayer] = []
    lines = [m for m in messages if m.startswith("Layers:")]
    for line in "\n".join(lines).splitlines():
        match = _LINE.match(line)
        if match is None:
            continue
        layers.append(
            EngineLayer(
                match["name"],
                match["kind"],
                tuple(_TYPE.findall(match["inputs"])),
                tuple(_TYPE.findall(match["constants"] or "")),
                tuple(_TYPE.findall(match["outputs"])),
                tuple(_NODE.findall(line)),
            )
        )
    if not layers:
        raise BackendMissingError(
            "the builder's list of layers cannot be read, so what was realised is unknown; "
            "this version of the library writes another format (1.7 is known)"
        )
    return tuple(layers)


def realised_precision(layers: Sequence[EngineLayer], node: str) -> str:
    """Precision in which an ONNX node multiplies: that of its kernels, "" when it is in none.

    A node stands in several layers where its input is quantized on the way; its own kernel is the
    one that is not generated. Where all are generated, the node was fused away into them.
    """
    own = [layer for layer in layers if node in layer.nodes]
    kernels = [layer for layer in own if not layer.generated] or own
    found = {layer.precision for layer in kernels}
    for precision in _FEW_BITS.values():
        if precision in found:
            return precision
    return next(iter(sorted(found)), "")
