"""What changed in each operator from one opset to the next, and how to write it in the new one.

Sources: ONNX's Changelog.md for each version, and ONNX Runtime's kernels where the text is silent
(rounding of Resize 10, output type of Dropout's mask).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as oir

from qcompile.ir.graph import attribute, constant, fresh_name, origins, set_origin

__all__ = ["RULES", "BlockedError", "Edit", "Editor", "Rule"]

Edit = Callable[[], None]
"""Carries out what a rule has decided."""


class BlockedError(Exception):
    """The node cannot be written in the new opset; the text continues "NODE ..."."""


@dataclass(frozen=True)
class Editor:
    """Makes constants and nodes with names that are free in the whole graph.

    Attributes:
        root: the outermost graph.
        function: it is a function's body, which holds no initializers.
    """

    root: oir.Graph
    function: bool = False

    def constant(self, node: oir.Node, what: str, array: npt.NDArray[np.generic]) -> oir.Value:
        """A constant input for ``node``, in the graph in which it stands."""
        name = fresh_name(self.root, f"{node.name or node.op_type}_{what}")
        tensor = oir.tensor(np.ascontiguousarray(array), name=name)
        if self.function or node.graph is None:
            made = oir.node("Constant", [], {"value": tensor}, name=name)
            made.outputs[0].name = name
            node.prepend(made)
            return made.outputs[0]
        value = oir.Value(
            name=name,
            type=oir.TensorType(tensor.dtype),
            shape=oir.Shape(array.shape),
            const_value=tensor,
        )
        node.graph.register_initializer(value)
        return value

    def ints(self, node: oir.Node, what: str, values: tuple[int, ...]) -> oir.Value:
        """A constant int64 vector."""
        return self.constant(node, what, np.array(values, dtype=np.int64))

    def node(
        self,
        like: oir.Node,
        op: str,
        inputs: list[oir.Value | None],
        attributes: dict[str, int] | None = None,
    ) -> oir.Node:
        """A node that stands for the same origin as ``like``; not inserted."""
        name = fresh_name(self.root, f"{like.name or like.op_type}_{op.lower()}")
        made = oir.node(op, inputs, attributes or {}, name=name)
        made.outputs[0].name = name
        set_origin(made, origins(like))
        return made


Rule = Callable[[oir.Node, Editor], "Edit | None"]
"""Decides; returns the edit (None: nothing to do) or raises BlockedError."""


def _ints(node: oir.Node, name: str) -> tuple[int, ...] | None:
    value = attribute(node, name)
    return tuple(int(v) for v in value) if isinstance(value, tuple) else None


def _int(node: oir.Node, name: str, default: int) -> int:
    value = attribute(node, name, default)
    return value if isinstance(value, int) else default


def _input(node: oir.Node, index: int) -> oir.Value | None:
    return node.inputs[index] if index < len(node.inputs) else None


def _set_input(node: oir.Node, index: int, value: oir.Value | None) -> None:
    if index >= len(node.inputs):
        node.resize_inputs(index + 1)
    node.replace_input_with(index, value)


def _float_dtype(node: oir.Node) -> np.dtype[np.generic]:
    x = _input(node, 0)
    dtype = x.dtype if x is not None else None
    if dtype is None:
        dtype = node.outputs[0].dtype
    if dtype is None:
        raise BlockedError("has an input of unknown type, so its limits cannot become inputs")
    return np.dtype(dtype.numpy())


def _ints_to_input(name: str, index: int) -> Rule:
    """An attribute of integers becomes input ``index``; absent or empty stays absent."""

    def rule(node: oir.Node, editor: Editor) -> Edit | None:
        values = _ints(node, name)
        if values is None:
            return None

        def edit() -> None:
            node.attributes.pop(name)
            if values:
                _set_input(node, index, editor.ints(node, name, values))

        return edit

    return rule


def _slice(node: oir.Node, editor: Editor) -> Edit:
    parts = [_ints(node, n) for n in ("starts", "ends", "axes")]

    def edit() -> None:
        for i, (name, values) in enumerate(zip(("starts", "ends", "axes"), parts, strict=True)):
            node.attributes.pop(name, None)
            if values is not None:
                _set_input(node, i + 1, editor.ints(node, name, values))

    return edit


def _topk(node: oir.Node, editor: Editor) -> Edit:
    def edit() -> None:
        k = _int(node, "k", 1)
        node.attributes.pop("k")
        _set_input(node, 1, editor.ints(node, "k", (k,)))

    return edit


def _upsample_scales(node: oir.Node, editor: Editor) -> Edit:
    scales = attribute(node, "scales")
    if not isinstance(scales, tuple):
        raise BlockedError("has no scales")

    def edit() -> None:
        node.attributes.pop("scales")
        array = np.array(scales, dtype=np.float32)
        _set_input(node, 1, editor.constant(node, "scales", array))

    return edit


def _upsample(node: oir.Node, editor: Editor) -> Edit:
    def edit() -> None:
        node.op_type = "Resize"

    return edit


def _resize11(node: oir.Node, editor: Editor) -> Edit:
    # Before 11: output position / scale; nearest rounds down enlarging, up shrinking (ONNX Runtime)
    rounding = "floor"
    if attribute(node, "mode", "nearest") == "nearest":
        scales = constant(_input(node, 1))
        if scales is None:
            raise BlockedError("has scales that are not constant, which decide how it rounds")
        down = scales[scales < 1].astype(np.float64)
        if down.size and not bool(np.all(np.isclose(1 / down, np.round(1 / down), atol=1e-6))):
            if bool(np.any(scales > 1)):
                raise BlockedError("both enlarges and shrinks, which round differently")
            rounding = "ceil"

    def edit() -> None:
        scales = node.inputs[1]
        _set_input(node, 2, scales)
        _set_input(node, 1, editor.constant(node, "roi", np.zeros(0, dtype=np.float32)))
        node.attributes["coordinate_transformation_mode"] = oir.AttrString(
            "coordinate_transformation_mode", "asymmetric"
        )
        node.attributes["nearest_mode"] = oir.AttrString("nearest_mode", rounding)

    return edit


def _resize13(node: oir.Node, editor: Editor) -> Edit | None:
    if attribute(node, "coordinate_transformation_mode") == "tf_half_pixel_for_nn":
        raise BlockedError("uses tf_half_pixel_for_nn, which opset 13 no longer has")
    empty = [
        i for i in (1, 2) if (array := constant(_input(node, i))) is not None and not array.size
    ]
    if not empty:
        return None

    def edit() -> None:
        for i in empty:
            node.replace_input_with(i, None)

    return edit


def _batchnorm9(node: oir.Node, editor: Editor) -> Edit | None:
    if "spatial" not in node.attributes:
        return None
    if _int(node, "spatial", 1) != 1:
        raise BlockedError("has spatial=0, which no longer exists")

    def edit() -> None:
        node.attributes.pop("spatial")

    return edit


def _batchnorm14(node: oir.Node, editor: Editor) -> Edit | None:
    if any(v.name for v in node.outputs[1:]):
        raise BlockedError("is in training mode (it has more than one output)")
    return None


def _dropout_mask(node: oir.Node, editor: Editor) -> Edit | None:
    mask = node.outputs[1] if len(node.outputs) > 1 else None
    if mask is not None and (mask.uses() or mask.is_graph_output()):
        raise BlockedError("has a mask that is read, whose type changed")
    return None


def _dropout12(node: oir.Node, editor: Editor) -> Edit | None:
    if "ratio" not in node.attributes:
        return None

    def edit() -> None:
        ratio = attribute(node, "ratio", 0.5)
        node.attributes.pop("ratio")
        _set_input(node, 1, editor.constant(node, "ratio", np.array(ratio, dtype=np.float32)))

    return edit


def _clip(node: oir.Node, editor: Editor) -> Edit | None:
    limits = [attribute(node, n) for n in ("min", "max")]
    if limits == [None, None]:
        return None
    dtype = _float_dtype(node)

    def edit() -> None:
        for i, (name, limit) in enumerate(zip(("min", "max"), limits, strict=True)):
            node.attributes.pop(name, None)
            if limit is not None:
                value = editor.constant(node, name, np.array(limit).astype(dtype))
                _set_input(node, i + 1, value)

    return edit


def _pad(node: oir.Node, editor: Editor) -> Edit:
    pads, value = _ints(node, "pads") or (), attribute(node, "value", 0.0)
    dtype = _float_dtype(node) if value != 0.0 else None

    def edit() -> None:
        for name in ("pads", "value"):
            node.attributes.pop(name, None)
        _set_input(node, 1, editor.ints(node, "pads", pads))
        if dtype is not None:
            _set_input(node, 2, editor.constant(node, "value", np.array(value).astype(dtype)))

    return edit


def _scatter(node: oir.Node, editor: Editor) -> Edit:
    def edit() -> None:
        node.op_type = "ScatterElements"

    return edit


def _softmax(node: oir.Node, editor: Editor) -> Edit | None:
    # before 13: the tensor is flattened to (dims before axis, dims from axis on), rows normalised
    axis = _int(node, "axis", 1)
    x = node.inputs[0]
    if x is None:
        raise BlockedError("has no input")
    if axis == -1:
        return None
    if x.shape is not None:
        rank = len(x.shape)
        first = axis % rank if rank else 0
        wide = [i for i in range(first, rank) if x.shape[i] != 1]
        if len(wide) <= 1:
            chosen = wide[0] if wide else first

            def set_axis() -> None:
                node.attributes["axis"] = oir.AttrInt64("axis", chosen)

            return set_axis

    def edit() -> None:
        shape = editor.node(node, "Shape", [x])
        flat = editor.node(node, "Flatten", [x], {"axis": axis})
        rows = editor.node(node, node.op_type, [flat.outputs[0]], {"axis": -1})
        back = editor.node(node, "Reshape", [rows.outputs[0], shape.outputs[0]])
        graph = node.graph
        if graph is None:
            raise BlockedError("stands in no graph")
        kept = node.name
        oir.convenience.replace_nodes_and_values(
            graph,
            insertion_point=node,
            old_nodes=[node],
            new_nodes=[shape, flat, rows, back],
            old_values=node.outputs,
            new_values=back.outputs,
        )
        rows.name = kept

    return edit


def _split18(node: oir.Node, editor: Editor) -> Edit | None:
    if _input(node, 1) is not None:
        return None

    def edit() -> None:
        node.attributes["num_outputs"] = oir.AttrInt64("num_outputs", len(node.outputs))

    return edit


def _roi_align(node: oir.Node, editor: Editor) -> Edit:
    def edit() -> None:
        name = "coordinate_transformation_mode"
        node.attributes[name] = oir.AttrString(name, "output_half_pixel")

    return edit


def _dft(node: oir.Node, editor: Editor) -> Edit:
    def edit() -> None:
        axis = _int(node, "axis", 1)
        node.attributes.pop("axis", None)
        _set_input(node, 2, editor.constant(node, "axis", np.array(axis, dtype=np.int64)))

    return edit


def _grid_sample(node: oir.Node, editor: Editor) -> Edit:
    mode = str(attribute(node, "mode", "bilinear"))

    def edit() -> None:
        new = {"bilinear": "linear", "bicubic": "cubic"}.get(mode, mode)
        node.attributes["mode"] = oir.AttrString("mode", new)

    return edit


def _group_norm(node: oir.Node, editor: Editor) -> Edit:
    groups = _int(node, "num_groups", 1)
    x = node.inputs[0]
    channels = x.shape[1] if x is not None and x.shape is not None and len(x.shape) > 1 else None
    arrays = [constant(_input(node, i)) for i in (1, 2)]
    if not isinstance(channels, int) or any(a is None for a in arrays):
        raise BlockedError(
            "has a scale per group that is not constant, or an unknown channel count"
        )

    def edit() -> None:
        for i, array in enumerate(arrays, 1):
            if array is not None:
                name = "scale" if i == 1 else "bias"
                wide = np.repeat(array, channels // groups)
                _set_input(node, i, editor.constant(node, name, wide))

    return edit


_AXES_INPUT = "axes became an input"
_REDUCE = (
    "ReduceL1",
    "ReduceL2",
    "ReduceLogSum",
    "ReduceLogSumExp",
    "ReduceMax",
    "ReduceMean",
    "ReduceMin",
    "ReduceProd",
    "ReduceSumSquare",
)

RULES: dict[tuple[str, int], tuple[Rule, str]] = {
    ("BatchNormalization", 9): (_batchnorm9, "spatial dropped"),
    ("Upsample", 9): (_upsample_scales, "scales became an input"),
    ("Dropout", 10): (_dropout_mask, ""),
    ("Slice", 10): (_slice, "starts, ends, axes became inputs"),
    ("TopK", 10): (_topk, "k became an input"),
    ("Upsample", 10): (_upsample, "became Resize"),
    ("Clip", 11): (_clip, "limits became inputs"),
    ("Pad", 11): (_pad, "pads and value became inputs"),
    ("Resize", 11): (_resize11, "coordinates and rounding written out"),
    ("Scatter", 11): (_scatter, "became ScatterElements"),
    ("Dropout", 12): (_dropout12, "ratio became an input"),
    ("Hardmax", 13): (_softmax, "axis written for the new meaning"),
    ("LogSoftmax", 13): (_softmax, "axis written for the new meaning"),
    ("Softmax", 13): (_softmax, "axis written for the new meaning"),
    ("ReduceSum", 13): (_ints_to_input("axes", 1), _AXES_INPUT),
    ("Resize", 13): (_resize13, "empty inputs left out"),
    ("Split", 13): (_ints_to_input("split", 1), "split became an input"),
    ("Squeeze", 13): (_ints_to_input("axes", 1), _AXES_INPUT),
    ("Unsqueeze", 13): (_ints_to_input("axes", 1), _AXES_INPUT),
    ("BatchNormalization", 14): (_batchnorm14, ""),
    ("RoiAlign", 16): (_roi_align, "coordinates written out"),
    ("Split", 18): (_split18, "number of outputs written out"),
    **{(op, 18): (_ints_to_input("axes", 1), _AXES_INPUT) for op in _REDUCE},
    ("DFT", 20): (_dft, "axis became an input"),
    ("GridSample", 20): (_grid_sample, "mode renamed"),
    ("GroupNormalization", 21): (_group_norm, "scale and bias written per channel"),
}
"""(operator, opset that changed it) -> (rule, what it does)."""
