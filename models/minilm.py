"""Writes the MiniLM-L6 sentence encoder as ONNX from its safetensors weights, without PyTorch.

    input_ids, attention_mask (batch, sequence)
      embeddings: word + position + token type 0, LayerNormalization
      6 x: self-attention (12 heads of 32), residual, LayerNormalization; GELU of 1536, the same
      embedding (batch, 384): mean over the unmasked tokens, scaled to length 1

GELU and attention are written out in plain operators, as exporters write them: recognising them is
the compiler's work. Source: Devlin et al., "BERT", 2019; Wang et al., "MiniLM", 2020.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET, IR_VERSION = 17, 8  # of 2022: opens in every runtime of the last years
HEADS = 12
EPSILON = 1e-12
MASKED = -1e4  # added to the logits of padding: far below any, yet finite in float16

Weights = dict[str, npt.NDArray[np.float32]]


def read_safetensors(data: bytes) -> Weights:
    """All float32 tensors of a safetensors file: 8 bytes of header length, JSON, then the data.

    Raises:
        ValueError: the bytes are not such a file.
    """
    try:
        start = 8 + int.from_bytes(data[:8], "little")
        header: dict[str, Any] = json.loads(data[8:start])
    except (UnicodeDecodeError, json.JSONDecodeError) as e:
        raise ValueError(f"not a safetensors file: {e}") from e
    weights: Weights = {}
    for name, entry in header.items():
        if name == "__metadata__" or entry["dtype"] != "F32":
            continue
        begin, end = entry["data_offsets"]
        array = np.frombuffer(data[start + begin : start + end], np.dtype("<f4"))
        weights[name] = array.reshape(entry["shape"])
    return weights


@dataclass
class Writer:
    """Nodes and initializers in the order they are asked for."""

    weights: Weights
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    initializers: list[onnx.TensorProto] = field(default_factory=list)

    def constant(self, name: str, value: npt.ArrayLike, dtype: type = np.float32) -> str:
        """The name of a new initializer."""
        self.initializers.append(numpy_helper.from_array(np.array(value, dtype), name))
        return name

    def weight(self, name: str, transpose: bool = False) -> str:
        """The name of the initializer that holds the weight, added once."""
        array = self.weights[name]
        return self.constant(name, np.ascontiguousarray(array.T) if transpose else array)

    def node(self, op: str, inputs: list[str], name: str, **attributes: Any) -> str:
        """The output of a new node, named after it."""
        self.nodes.append(helper.make_node(op, inputs, [name], name=name, **attributes))
        return name

    def linear(self, x: str, layer: str) -> str:
        """``x @ W.T + b``; the weight is stored as MatMul wants it, ``(in, out)``."""
        product = self.node("MatMul", [x, self.weight(f"{layer}.weight", True)], f"{layer}.matmul")
        return self.node("Add", [product, self.weight(f"{layer}.bias")], f"{layer}.add")

    def norm(self, x: str, layer: str) -> str:
        """LayerNormalization over the last axis."""
        inputs = [x, self.weight(f"{layer}.weight"), self.weight(f"{layer}.bias")]
        return self.node("LayerNormalization", inputs, f"{layer}.norm", epsilon=EPSILON, axis=-1)


def embeddings(w: Writer) -> str:
    """Word + position + token type 0, normalized: ``(batch, sequence, hidden)``."""
    words = w.node("Gather", [w.weight("embeddings.word_embeddings.weight"), "input_ids"], "words")
    shape = w.node("Shape", ["input_ids"], "ids.shape")
    one = w.constant("index.one", 1, np.int64)
    zero = w.constant("index.zero", 0, np.int64)
    length = w.node("Gather", [shape, one], "ids.length")
    steps = w.node("Range", [zero, length, one], "position_ids")
    table = w.weight("embeddings.position_embeddings.weight")
    positions = w.node("Gather", [table, steps], "positions")
    token_type = w.constant("token_type", w.weights["embeddings.token_type_embeddings.weight"][0])
    x = w.node("Add", [words, positions], "embeddings.sum")
    x = w.node("Add", [x, token_type], "embeddings.typed")
    return w.norm(x, "embeddings.LayerNorm")


def mask_bias(w: Writer) -> tuple[str, str]:
    """The mask as float ``(batch, sequence, 1)`` and as logits ``(batch, 1, 1, sequence)``."""
    mask = w.node("Cast", ["attention_mask"], "mask", to=TensorProto.FLOAT)
    tokens = w.node("Unsqueeze", [mask, w.constant("axes.last", [2], np.int64)], "mask.tokens")
    keys = w.node("Unsqueeze", [mask, w.constant("axes.inner", [1, 2], np.int64)], "mask.keys")
    padding = w.node("Sub", [w.constant("one", 1.0), keys], "mask.padding")
    return tokens, w.node("Mul", [padding, w.constant("masked", MASKED)], "mask.bias")


def encoder_layer(w: Writer, x: str, bias: str, layer: str, head: int) -> str:
    """One transformer layer, normalized after each residual."""
    split = w.constant(f"{layer}.split", [0, 0, HEADS, head], np.int64)
    heads = {}
    for part, order in (("query", (0, 2, 1, 3)), ("key", (0, 2, 3, 1)), ("value", (0, 2, 1, 3))):
        name = f"{layer}.attention.self.{part}"
        y = w.node("Reshape", [w.linear(x, name), split], f"{name}.split")
        heads[part] = w.node("Transpose", [y], f"{name}.heads", perm=order)
    at = f"{layer}.attention"
    y = w.node("MatMul", [heads["query"], heads["key"]], f"{at}.scores")
    y = w.node("Div", [y, w.constant(f"{at}.root", float(np.sqrt(head)))], f"{at}.scaled")
    y = w.node("Add", [y, bias], f"{at}.masked")
    y = w.node("Softmax", [y], f"{at}.softmax", axis=-1)
    y = w.node("MatMul", [y, heads["value"]], f"{at}.context")
    y = w.node("Transpose", [y], f"{at}.merged", perm=(0, 2, 1, 3))
    joined = w.constant(f"{at}.joined.shape", [0, 0, HEADS * head], np.int64)
    y = w.node("Reshape", [y, joined], f"{at}.joined")
    y = w.linear(y, f"{at}.output.dense")
    x = w.norm(w.node("Add", [x, y], f"{at}.residual"), f"{at}.output.LayerNorm")
    y = w.linear(x, f"{layer}.intermediate.dense")
    y = w.linear(gelu(w, y, f"{layer}.gelu"), f"{layer}.output.dense")
    return w.norm(w.node("Add", [x, y], f"{layer}.residual"), f"{layer}.output.LayerNorm")


def gelu(w: Writer, x: str, name: str) -> str:
    """``x * (1 + erf(x / sqrt(2))) * 0.5``."""
    y = w.node("Div", [x, w.constant(f"{name}.root", float(np.sqrt(2.0)))], f"{name}.div")
    y = w.node("Erf", [y], f"{name}.erf")
    y = w.node("Add", [y, w.constant(f"{name}.one", 1.0)], f"{name}.add")
    y = w.node("Mul", [x, y], f"{name}.mul")
    return w.node("Mul", [y, w.constant(f"{name}.half", 0.5)], f"{name}.out")


def pooled(w: Writer, x: str, tokens: str) -> None:
    """The graph's output: the masked mean over the sequence, scaled to length 1."""
    axis = w.constant("axes.sequence", [1], np.int64)
    total = w.node(
        "ReduceSum", [w.node("Mul", [x, tokens], "pool.mul"), axis], "pool.sum", keepdims=0
    )
    count = w.node("ReduceSum", [tokens, axis], "pool.count", keepdims=0)
    count = w.node("Clip", [count, w.constant("tiny.count", 1e-9)], "pool.some")
    mean = w.node("Div", [total, count], "pool.mean")
    length = w.node("ReduceL2", [mean], "pool.length", axes=[-1])
    length = w.node("Clip", [length, w.constant("tiny.length", 1e-12)], "pool.positive")
    w.node("Div", [mean, length], "embedding")


def build(data: bytes) -> bytes:
    """The serialized ONNX model for the weights; the same weights give the same bytes.

    Raises:
        ValueError: the weights are not those of this architecture.
    """
    weights = {k.removeprefix("bert."): v for k, v in read_safetensors(data).items()}
    w = Writer(weights)
    try:
        hidden = weights["embeddings.LayerNorm.weight"].shape[0]
        x = embeddings(w)
        tokens, bias = mask_bias(w)
        layers = sorted({int(k.split(".")[2]) for k in weights if k.startswith("encoder.layer.")})
        for i in layers:
            x = encoder_layer(w, x, bias, f"encoder.layer.{i}", hidden // HEADS)
        pooled(w, x, tokens)
    except KeyError as e:
        raise ValueError(f"the weights lack {e}") from e
    ids = [
        helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "sequence"])
        for name in ("input_ids", "attention_mask")
    ]
    out = helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["batch", hidden])
    graph = helper.make_graph(w.nodes, "minilm", ids, [out], w.initializers)
    opsets = [helper.make_opsetid("", OPSET)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)
    onnx.checker.check_model(model)
    serialized: bytes = model.SerializeToString(deterministic=True)
    return serialized
