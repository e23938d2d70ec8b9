"""One decoder in the forms that exporters write today, each with a cache of keys and values.

    python benchmarks/decoder_forms.py smollm2_135m.onnx FOLDER

writes the Llama-style model (no cache, as PyTorch exports it) anew in three forms:

* plain: operators of opset 17; RMS norm, rotary embedding, causal mask and repeated heads written out, as
  Optimum exports;
* contrib: ONNX Runtime's GroupQueryAttention with rotary embedding inside, SimplifiedLayerNormalization and
  SkipSimplifiedLayerNormalization, as ONNX Runtime GenAI's builder writes;
* opset23: RMSNormalization, RotaryEmbedding and Attention of ONNX itself.

All take input_ids, attention_mask, position_ids and past_key_values.N.key and .value, and give logits,
present.N.key and .value.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

FORMS = ("plain", "contrib", "opset23")
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Config:
    """A Llama-style decoder.

    Attributes:
        layers: blocks.
        heads: of queries.
        kv_heads: of keys and values.
        head: width of one.
        width: of the residual stream.
        theta: base of the rotary embedding.
        epsilon: of the RMS norms.
        longest: positions in the table of the rotary embedding.
    """

    layers: int
    heads: int
    kv_heads: int
    head: int
    width: int
    theta: float = 100000.0
    epsilon: float = 1e-5
    longest: int = 2048


def build(config: Config, weight: Callable[[str], Floats], form: str) -> onnx.ModelProto:
    """The model; ``weight`` gives "embedding", "norm", and "N.q", "N.input_norm" and so on, (in, out)."""
    return _Builder(config, weight, form).model()


class _Builder:
    def __init__(self, config: Config, weight: Callable[[str], Floats], form: str) -> None:
        self.c, self.weight, self.form = config, weight, form
        self.nodes: list[onnx.NodeProto] = []
        self.tensors: list[onnx.TensorProto] = []
        self.known: set[str] = set()

    def const(self, name: str, value: object, kind: type = np.int64) -> str:
        if name not in self.known:
            self.known.add(name)
            self.tensors.append(numpy_helper.from_array(np.array(value, kind), name))
        return name

    def w(self, name: str) -> str:
        if name not in self.known:
            self.known.add(name)
            self.tensors.append(numpy_helper.from_array(self.weight(name), name))
        return name

    def node(
        self, op: str, inputs: Sequence[str], outputs: str | Sequence[str], **more: Any
    ) -> str:
        made = [outputs] if isinstance(outputs, str) else list(outputs)
        self.nodes.append(helper.make_node(op, inputs, made, name=f"/{made[0]}", **more))
        return made[0]

    def model(self) -> onnx.ModelProto:
        c, value = self.c, helper.make_tensor_value_info
        inputs = [
            value("input_ids", TensorProto.INT64, ["batch", "seq"]),
            value("attention_mask", TensorProto.INT64, ["batch", "total"]),
            value("position_ids", TensorProto.INT64, ["batch", "seq"]),
        ]
        outputs = [
            value("logits", TensorProto.FLOAT, ["batch", "seq", len(self.weight("embedding"))])
        ]
        for i in range(c.layers):
            for part in ("key", "value"):
                shape: list[str | int] = ["batch", c.kv_heads, "past", c.head]
                inputs.append(value(f"past_key_values.{i}.{part}", TensorProto.FLOAT, shape))
                shape = ["batch", c.kv_heads, "total", c.head]
                outputs.append(value(f"present.{i}.{part}", TensorProto.FLOAT, shape))
        self.before()
        x = self.node("Gather", [self.w("embedding"), "input_ids"], "x")
        for i in range(c.layers):
            x = self.block(i, x)
        last = self.norm(x, "norm", "last")
        turned = self.node("Transpose", [self.w("embedding")], "head", perm=[1, 0])
        self.node("MatMul", [last, turned], "logits")
        opset = 23 if self.form == "opset23" else 17
        imports = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
        graph = helper.make_graph(self.nodes, "decoder", inputs, outputs, self.tensors)
        return helper.make_model(
            graph,
            opset_imports=imports[: 1 + (self.form == "contrib")],
            ir_version=8 + 2 * (opset > 17),
        )

    def before(self) -> None:
        """What all blocks share: the rotary tables, and the mask in the form that attention wants."""
        c = self.c
        angles = np.outer(np.arange(c.longest), c.theta ** (-np.arange(0, c.head, 2) / c.head))
        self.const("cos", np.cos(angles), np.float32)
        self.const("sin", np.sin(angles), np.float32)
        if self.form == "contrib":
            total = self.node(
                "ReduceSum", ["attention_mask", self.const("i1", [1])], "length", keepdims=0
            )
            less = self.node("Sub", [total, self.const("one", 1)], "length_less")
            self.node("Cast", [less], "seqlens_k", to=TensorProto.INT32)
            shape = self.node("Shape", ["attention_mask"], "mask_shape")
            wide = self.node("Gather", [shape, self.const("one", 1)], "mask_width", axis=0)
            self.node("Cast", [wide], "total_sequence_length", to=TensorProto.INT32)
            return
        keys = self.node("Shape", ["attention_mask"], "keys", start=1, end=2)
        count = self.node("Squeeze", [keys], "key_count")
        at = self.node("Range", [self.const("zero", 0), count, self.const("one", 1)], "key_at")
        query = self.node("Unsqueeze", ["position_ids", self.const("last", [-1])], "query_at")
        seen = self.node("LessOrEqual", [at, query], "seen")
        real = self.node("Cast", ["attention_mask"], "real", to=TensorProto.BOOL)
        rows = self.node("Unsqueeze", [real, self.const("i1", [1])], "real_rows")
        both = self.node("And", [seen, rows], "allowed")
        allowed = self.node("Unsqueeze", [both, self.const("i1", [1])], "allowed_heads")
        if self.form == "plain":
            zero, far = self.const("f0", 0, np.float32), self.const("far", -1e9, np.float32)
            self.node("Where", [allowed, zero, far], "mask")
            for name in ("cos", "sin"):
                half = self.node("Gather", [name, "position_ids"], f"{name}_half")
                whole = self.node("Concat", [half, half], f"{name}_whole", axis=-1)
                self.node("Unsqueeze", [whole, self.const("i1", [1])], f"{name}_rows")

    def norm(self, x: str, weight: str, at: str) -> str:
        gain = self.w(weight)
        if self.form == "contrib":
            return self.node(
                "SimplifiedLayerNormalization", [x, gain], f"{at}_normed",
                axis=-1, epsilon=self.c.epsilon, stash_type=1,
            )  # fmt: skip
        if self.form == "opset23":
            return self.node(
                "RMSNormalization", [x, gain], f"{at}_normed", axis=-1, epsilon=self.c.epsilon
            )
        square = self.node("Pow", [x, self.const("two", 2, np.float32)], f"{at}_square")
        mean = self.node("ReduceMean", [square], f"{at}_mean", axes=[-1])
        safe = self.node(
            "Add", [mean, self.const("epsilon", self.c.epsilon, np.float32)], f"{at}_safe"
        )
        root = self.node("Sqrt", [safe], f"{at}_root")
        inverse = self.node("Div", [self.const("f1", 1, np.float32), root], f"{at}_inverse")
        scaled = self.node("Mul", [x, inverse], f"{at}_scaled")
        return self.node("Mul", [scaled, gain], f"{at}_normed")

    def block(self, i: int, x: str) -> str:
        h = self.norm(x, f"{i}.input_norm", f"{i}.in")
        parts = [self.node("MatMul", [h, self.w(f"{i}.{p}")], f"{i}.{p}_out") for p in "qkv"]
        mixed = getattr(self, f"attend_{self.form}")(i, *parts)
        added = self.node("MatMul", [mixed, self.w(f"{i}.o")], f"{i}.o_out")
        if self.form == "contrib":
            inputs = [x, added, self.w(f"{i}.mlp_norm")]
            outputs = [f"{i}.mlp_normed", "", "", f"{i}.attended"]
            h = self.node(
                "SkipSimplifiedLayerNormalization", inputs, outputs,
                domain="com.microsoft", epsilon=self.c.epsilon,
            )  # fmt: skip
            x = f"{i}.attended"
        else:
            x = self.node("Add", [x, added], f"{i}.attended")
            h = self.norm(x, f"{i}.mlp_norm", f"{i}.mlp")
        gate = self.node("MatMul", [h, self.w(f"{i}.gate")], f"{i}.gate_out")
        silu = self.node("Mul", [gate, self.node("Sigmoid", [gate], f"{i}.sigmoid")], f"{i}.silu")
        up = self.node("MatMul", [h, self.w(f"{i}.up")], f"{i}.up_out")
        both = self.node("Mul", [silu, up], f"{i}.both")
        down = self.node("MatMul", [both, self.w(f"{i}.down")], f"{i}.down_out")
        return self.node("Add", [x, down], f"{i}.out")

    def attend_contrib(self, i: int, q: str, k: str, v: str) -> str:
        past = [f"past_key_values.{i}.{p}" for p in ("key", "value")]
        inputs = [q, k, v, *past, "seqlens_k", "total_sequence_length", "cos", "sin"]
        outputs = [f"{i}.mixed", f"present.{i}.key", f"present.{i}.value"]
        return self.node(
            "GroupQueryAttention", inputs, outputs, domain="com.microsoft", do_rotary=1,
            num_heads=self.c.heads, kv_num_heads=self.c.kv_heads, scale=self.c.head**-0.5,
        )  # fmt: skip

    def attend_opset23(self, i: int, q: str, k: str, v: str) -> str:
        c = self.c
        turned = {
            name: self.node(
                "RotaryEmbedding",
                [x, "cos", "sin", "position_ids"],
                f"{i}.{name}_turned",
                num_heads=n,
            )
            for name, x, n in (("q", q, c.heads), ("k", k, c.kv_heads))
        }
        past = [f"past_key_values.{i}.{p}" for p in ("key", "value")]
        outputs = [f"{i}.mixed", f"present.{i}.key", f"present.{i}.value"]
        return self.node(
            "Attention", [turned["q"], turned["k"], v, "allowed_heads", *past], outputs,
            q_num_heads=c.heads, kv_num_heads=c.kv_heads, scale=c.head**-0.5,
        )  # fmt: skip

    def attend_plain(self, i: int, q: str, k: str, v: str) -> str:
        c = self.c
        rows: dict[str, str] = {}
        for name, x, count in (("q", q, c.heads), ("k", k, c.kv_heads), ("v", v, c.kv_heads)):
            shape = self.const(f"split{count}", [0, 0, count, c.head])
            split = self.node("Reshape", [x, shape], f"{i}.{name}_split")
            rows[name] = self.node("Transpose", [split], f"{i}.{name}_rows", perm=[0, 2, 1, 3])
        for name in "qk":
            x, half = rows[name], c.head // 2
            ends = [self.const(f"to{n}", [n]) for n in (0, half, c.head)]
            axis = self.const("axis", [3])
            low = self.node("Slice", [x, ends[0], ends[1], axis], f"{i}.{name}_low")
            high = self.node("Slice", [x, ends[1], ends[2], axis], f"{i}.{name}_high")
            negative = self.node("Neg", [high], f"{i}.{name}_negative")
            other = self.node("Concat", [negative, low], f"{i}.{name}_other", axis=-1)
            one = self.node("Mul", [x, "cos_rows"], f"{i}.{name}_cos")
            two = self.node("Mul", [other, "sin_rows"], f"{i}.{name}_sin")
            rows[name] = self.node("Add", [one, two], f"{i}.{name}_turned")
        for name, part in (("k", "key"), ("v", "value")):
            now = f"present.{i}.{part}"
            self.node("Concat", [f"past_key_values.{i}.{part}", rows[name]], now, axis=2)
            rows[name] = self.repeated(i, name, now)
        keys = self.node("Transpose", [rows["k"]], f"{i}.k_columns", perm=[0, 1, 3, 2])
        scores = self.node("MatMul", [rows["q"], keys], f"{i}.scores")
        scale = self.const("scale", c.head**-0.5, np.float32)
        masked = self.node(
            "Add", [self.node("Mul", [scores, scale], f"{i}.scaled"), "mask"], f"{i}.masked"
        )
        share = self.node("Softmax", [masked], f"{i}.share", axis=-1)
        mixed = self.node("MatMul", [share, rows["v"]], f"{i}.mixed_rows")
        back = self.node("Transpose", [mixed], f"{i}.back", perm=[0, 2, 1, 3])
        joined = self.const("join", [0, 0, c.heads * c.head])
        return self.node("Reshape", [back, joined], f"{i}.mixed")

    def repeated(self, i: int, name: str, x: str) -> str:
        """Each head of keys or values for all query heads of its group."""
        c = self.c
        times = c.heads // c.kv_heads
        wide = self.node("Unsqueeze", [x, self.const("i2", [2])], f"{i}.{name}_wide")
        copies = self.const("copies", [1, 1, times, 1, 1])
        tiled = self.node("Expand", [wide, copies], f"{i}.{name}_tiled")
        shape = self.const("merge", [0, c.heads, -1, c.head])
        return self.node("Reshape", [tiled, shape], f"{i}.{name}_all")


def from_export(path: Path) -> tuple[Config, Callable[[str], Floats]]:
    """Sizes and weights of the zoo's smollm2_135m, which PyTorch exported without a cache."""
    model = onnx.load(path)
    arrays = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    products = [
        arrays[n.input[1]]
        for n in model.graph.node
        if n.op_type == "MatMul" and n.input[1] in arrays
    ]
    names: dict[str, Floats] = {"embedding": arrays["emb.weight"]}
    kinds = ("q", "k", "v", "o", "gate", "up", "down")
    layers = len(products) // len(kinds)
    for i in range(layers):
        for kind, array in zip(kinds, products[len(kinds) * i :], strict=False):
            names[f"{i}.{kind}"] = array
        names[f"{i}.input_norm"], names[f"{i}.mlp_norm"] = arrays[f"n1.{i}"], arrays[f"n2.{i}"]
    rest = [n for n in arrays if arrays[n].ndim == 1 and not n.startswith(("n1.", "n2."))]
    names["norm"] = next(arrays[n] for n in rest if arrays[n].shape == (len(arrays["n1.0"]),))
    width, out = names["0.k"].shape
    head = 64
    config = Config(layers, names["0.q"].shape[1] // head, out // head, head, width)
    return config, names.__getitem__


def main() -> None:
    """Write all forms."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("folder", type=Path)
    asked = parser.parse_args()
    config, weight = from_export(asked.model)
    asked.folder.mkdir(parents=True, exist_ok=True)
    for form in FORMS:
        path = asked.folder / f"{asked.model.stem}_{form}.onnx"
        onnx.save(build(config, weight, form), path)
        print(path)


if __name__ == "__main__":
    main()
