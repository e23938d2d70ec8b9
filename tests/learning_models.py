"""A small network with correlated inputs, its samples, and what is needed to learn its weights."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
import onnx_ir as oir

from qcompile.data.inputs import Feed
from qcompile.ir.affine import TensorRange
from qcompile.ir.graph import replace_value
from qcompile.ir.manager import CompileState, PassManager
from qcompile.ir.plan import PrecisionPlan
from qcompile.learning import Learned
from qcompile.passes.correct_bias import CorrectBias
from qcompile.passes.insert_qdq import InsertQDQ
from qcompile.passes.integer_region import observed_tensors
from qcompile.passes.quantizable import classify
from qcompile.planner.default import default_plan
from tests.passes.qdq_models import run, state_of, text_model

GRAPH = """
g (float[N,6,8,8] x) => (float[N,5] y) {
  a = Conv <pads = [1, 1, 1, 1]> (x, w1, b1)
  r = Relu (a)
  d = Conv <group = 8> (r, w2)
  p = GlobalAveragePool (d)
  f = Flatten (p)
  y = Gemm (f, w3, b3)
}
"""


@dataclass
class Subject:
    """A model with its samples, ranges and plan."""

    proto: onnx.ModelProto
    state: CompileState
    plan: PrecisionPlan
    feeds: list[Feed]

    @property
    def model(self) -> oir.Model:
        """The float model."""
        return self.state.model

    @property
    def ranges(self) -> dict[str, TensorRange]:
        """Of its activations."""
        return self.state.ranges

    def portable(self, learned: Learned) -> oir.Model:
        """The Q/DQ model with what was learned."""
        state = CompileState(
            self.model.clone(),
            self.state.target,
            ranges=dict(self.ranges),
            weights=dict(learned.weights),
            bias_shifts=dict(learned.bias_shifts),
            plan=self.plan,
        )
        PassManager([CorrectBias(), InsertQDQ()]).run(state)
        return state.model

    def error_db(self, learned: Learned, feeds: list[Feed], *, activations: bool = True) -> float:
        """SQNR of the Q/DQ model's output; without ``activations`` only weights are rounded."""
        portable = self.portable(learned)
        for node in list(portable.graph):
            if node.op_type == "QuantizeLinear" and not activations:
                for use in list(node.outputs[0].uses()):
                    replace_value(use.node.outputs[0], node.inputs[0])
        made = oir.to_proto(portable)
        signal = noise = 0.0
        for feed in feeds:
            want, have = run(self.proto, feed)[0], run(made, feed)[0]
            signal += float(np.square(want.astype(np.float64)).sum())
            noise += float(np.square(want.astype(np.float64) - have).sum())
        return float(10 * np.log10(signal / noise))


def images(count: int, seed: int) -> list[Feed]:
    """Smooth positive images of six channels that hang together."""
    rng = np.random.default_rng(seed)
    grid = np.linspace(0, 3, 8)
    found = []
    for _ in range(count):
        phase, size = rng.uniform(0, 6, (6, 2)), rng.uniform(0.5, 1.5)
        wave = [np.sin(grid[:, None] + a) * np.cos(grid + b) for a, b in phase]
        base = np.cos(grid[:, None] * size) + 2
        noise = 0.05 * rng.standard_normal((6, 8, 8))
        found.append({"x": (base + 0.3 * np.stack(wave) + noise)[None].astype(np.float32)})
    return found


def subject(graph: str = GRAPH, *, clip: float = 1.0, seed: int = 0) -> Subject:
    """The network above (or another that reads x) with ranges of its samples.

    Args:
        graph: as text; its constants are among those made below.
        clip: share of each tensor's largest value that its range covers.
        seed: of the weights.
    """
    rng = np.random.default_rng(seed)
    constants = {
        "w1": rng.standard_normal((8, 6, 3, 3)) * rng.uniform(0.2, 2, (8, 1, 1, 1)),
        "b1": rng.standard_normal(8),
        "w2": rng.standard_normal((8, 1, 3, 3)),
        "w3": rng.standard_normal((8, 5)),
        "b3": rng.standard_normal(5),
        "w4": rng.standard_normal((5, 8)),
        "w5": rng.standard_normal((8, 8)),
    }
    used = {k: v.astype(np.float32) for k, v in constants.items() if f" {k}" in graph}
    shapes = {"k": [48, 8], "l": [1, 6, 8, 5]}
    used |= {k: np.array(v, np.int64) for k, v in shapes.items() if f", {k})" in graph}
    proto = text_model(graph, **used)
    state = state_of(proto, calibrate=False)
    feeds = images(16, 1)
    names = observed_tensors(classify(state))
    probe = onnx.ModelProto()
    probe.CopyFrom(proto)
    have = {o.name for o in probe.graph.output} | {"x"}
    probe.graph.output.extend(
        onnx.helper.make_tensor_value_info(n, 1, None) for n in names if n not in have
    )
    lows, highs = dict.fromkeys(names, np.inf), dict.fromkeys(names, -np.inf)
    for feed in feeds:
        values = dict(zip([o.name for o in probe.graph.output], run(probe, feed), strict=True))
        values |= feed
        for name in names:
            lows[name] = min(lows[name], float(values[name].min()))
            highs[name] = max(highs[name], float(values[name].max()))
    state.ranges = {
        n: TensorRange(np.asarray(clip * lows[n]), np.asarray(clip * highs[n])) for n in names
    }
    return Subject(proto, state, default_plan(state), feeds)
