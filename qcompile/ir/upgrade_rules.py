"""What changed in each operator from one opset to the next, and how to write it in the new one.

Sources: ONNX's Changelog.md for each version, and ONNX Runtime's kernels where the text is silent
(rounding of Resize 10, output type of Dropout's mask).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as oir

from qcompile.ir.graph import attribute, constant
from qcompile.ir.upgrade_edit import (
    BlockedError,
    Edit,
    Editor,
    input_of,
    int_of,
    ints_of,
    set_input,
)

__all__ = ["RULES", "Rule"]

Rule = Callable[[oir.Node, Editor], "Edit | None"]
"""Decides; returns the edit (None: nothing to do) or raises BlockedError."""


def _float_dtype(node: oir.Node) -> np.dtype[np.generic]:
    x = input_of(node, 0)
    dtype = x.dtype if x is not None else None
    if dtype is None:
        dtype = node.outputs[0].dtype
    if dtype is None:
        raise BlockedError("has an input of unknown type, so its limits cannot become inputs")
    return np.dtype(dtype.numpy())


def _ints_to_input(name: str, index: int) -> Rule:
    """An attribute of integers becomes input ``index``; absent or empty stays absent."""

    def rule(node: oir.Node, editor: Editor) -> Edit | None:
        values = ints_of(node, name)
        if values is None:
            return None

        def edit() -> None:
            node.attributes.pop(name)
            if values:
                set_input(node, index, editor.ints(node, name, values))

        return edit

    return rule


def _slice(node: oir.Node, editor: Editor) -> Edit:
    parts = [ints_of(node, n) for n in ("starts", "ends", "axes")]

    def edit() -> None:
        for i, (name, values) in enumerate(zip(("starts", "ends", "axes"), parts, strict=True)):
            node.attributes.pop(name, None)
            if values is not None:
                set_input(node, i + 1, editor.ints(node, name, values))

    return edit


def _topk(node: oir.Node, editor: Editor) -> Edit:
    def edit() -> None:
        k = int_of(node, "k", 1)
        node.attributes.pop("k")
        set_input(node, 1, editor.ints(node, "k", (k,)))

    return edit


def _upsample_scales(node: oir.Node, editor: Editor) -> Edit:
    scales = attribute(node, "scales")
    if not isinstance(scales, tuple):
        raise BlockedError("has no scales")

    def edit() -> None:
        node.attributes.pop("scales")
        array = np.array(scales, dtype=np.float32)
        set_input(node, 1, editor.constant(node, "scales", array))

    return edit


_ENLARGES = "qcompile.enlarges"


def _upsample(node: oir.Node, editor: Editor) -> Edit:
    def edit() -> None:
        node.op_type = "Resize"
        node.meta[_ENLARGES] = True

    return edit


def _resize11(node: oir.Node, editor: Editor) -> Edit:
    # Before 11: output position / scale; nearest rounds down enlarging, up shrinking (ONNX Runtime)
    rounding = "floor"
    if attribute(node, "mode", "nearest") == "nearest" and _ENLARGES not in node.meta:
        found = constant(input_of(node, 1))
        if found is None:
            raise BlockedError("has scales that are not constant, which decide how it rounds")
        scales = found.astype(np.float64)
        down = scales[scales < 1]
        if down.size and not bool(np.all(np.isclose(1 / down, np.round(1 / down), atol=1e-6))):
            if bool(np.any(scales > 1)):
                raise BlockedError("both enlarges and shrinks, which round differently")
            rounding = "ceil"

    def edit() -> None:
        scales = node.inputs[1]
        set_input(node, 2, scales)
        set_input(node, 1, editor.constant(node, "roi", np.zeros(0, dtype=np.float32)))
        node.attributes["coordinate_transformation_mode"] = oir.AttrString(
            "coordinate_transformation_mode", "asymmetric"
        )
        node.attributes["nearest_mode"] = oir.AttrString("nearest_mode", rounding)

    return edit


def _resize13(node: oir.Node, editor: Editor) -> Edit | None:
    if attribute(node, "coordinate_transformation_mode") == "tf_half_pixel_for_nn":
        raise BlockedError("uses tf_half_pixel_for_nn, which opset 13 no longer has")
    arrays = [constant(input_of(node, i)) for i in (1, 2)]
    empty = [i for i, array in enumerate(arrays, 1) if array is not None and not array.size]
    if input_of(node, 3) is not None:
        # sizes decide; scales had to be there, but empty, and now must not be
        empty = sorted({*empty, 2})
    empty = [i for i in empty if input_of(node, i) is not None]
    if not empty:
        return None

    def edit() -> None:
        for i in empty:
            node.replace_input_with(i, None)

    return edit


def _batchnorm9(node: oir.Node, editor: Editor) -> Edit | None:
    if "spatial" not in node.attributes:
        return None
    if int_of(node, "spatial", 1) != 1:
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
        set_input(node, 1, editor.constant(node, "ratio", np.array(ratio, dtype=np.float32)))

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
                set_input(node, i + 1, value)

    return edit


def _pad(node: oir.Node, editor: Editor) -> Edit:
    pads, value = ints_of(node, "pads") or (), attribute(node, "value", 0.0)
    dtype = _float_dtype(node) if value != 0.0 else None

    def edit() -> None:
        for name in ("pads", "value"):
            node.attributes.pop(name, None)
        set_input(node, 1, editor.ints(node, "pads", pads))
        if dtype is not None:
            set_input(node, 2, editor.constant(node, "value", np.array(value).astype(dtype)))

    return edit


def _scatter(node: oir.Node, editor: Editor) -> Edit:
    def edit() -> None:
        node.op_type = "ScatterElements"

    return edit


def _softmax(node: oir.Node, editor: Editor) -> Edit | None:
    # before 13: the tensor is flattened to (dims before axis, dims from axis on), rows normalised
    axis = int_of(node, "axis", 1)
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
    if input_of(node, 1) is not None:
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
        axis = int_of(node, "axis", 1)
        node.attributes.pop("axis", None)
        set_input(node, 2, editor.constant(node, "axis", np.array(axis, dtype=np.int64)))

    return edit


def _grid_sample(node: oir.Node, editor: Editor) -> Edit:
    mode = str(attribute(node, "mode", "bilinear"))

    def edit() -> None:
        new = {"bilinear": "linear", "bicubic": "cubic"}.get(mode, mode)
        node.attributes["mode"] = oir.AttrString("mode", new)

    return edit


def _group_norm(node: oir.Node, editor: Editor) -> Edit:
    groups = int_of(node, "num_groups", 1)
    x = node.inputs[0]
    channels = x.shape[1] if x is not None and x.shape is not None and len(x.shape) > 1 else None
    arrays = [constant(input_of(node, i)) for i in (1, 2)]
    if not isinstance(channels, int) or any(a is None for a in arrays):
        raise BlockedError(
            "has a scale per group that is not constant, or an unknown channel count"
        )

    def edit() -> None:
        for i, array in enumerate(arrays, 1):
            if array is not None:
                name = "scale" if i == 1 else "bias"
                wide = np.repeat(array, channels // groups)
                set_input(node, i, editor.constant(node, name, wide))

    return edit


def _removed(node: oir.Node, editor: Editor) -> Edit | None:
    raise BlockedError("was experimental and no longer exists")


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
_EXPERIMENTAL = (
    "ATen",
    "Affine",
    "Crop",
    "DynamicSlice",
    "GRUUnit",
    "GivenTensorFill",
    "ImageScaler",
    "ParametricSoftplus",
    "Scale",
    "ScaledTanh",
)

RULES: dict[tuple[str, int], tuple[Rule, str]] = {
    ("BatchNormalization", 9): (_batchnorm9, "spatial dropped"),
    ("Upsample", 9): (_upsample_scales, "scales became an input"),
    ("Dropout", 10): (_dropout_mask, ""),
    ("Slice", 10): (_slice, "starts, ends, axes became inputs"),
    ("TopK", 10): (_topk, "k became an input"),
    ("Upsample", 10): (_upsample, "became Resize"),
    **{(op, 10): (_removed, "") for op in _EXPERIMENTAL},
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
