"""Models of old opsets: what each upgrade rule meets, and what no rule can write anew."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from onnx import parser

Array = npt.NDArray[np.generic]


def parse(text: str, opset: int) -> bytes:
    model = parser.parse_model(f'<ir_version: 7, opset_import: ["" : {opset}]>\n{text}')
    return model.SerializeToString()


def floats(*shape: int) -> Array:
    return np.random.default_rng(7).normal(0, 2, shape).astype(np.float32)


RULES = {
    "slice": (
        9,
        13,
        "g (float[2,3,4,4] x) => (float[a,b,c,d] y) { y = "
        "Slice<axes=[2,-1],starts=[1,0],ends=[4,-1]>(x) }",
    ),
    "slice_no_axes": (
        9,
        10,
        "g (float[2,3,4,4] x) => (float[a,b,c,d] y) { y = Slice<starts=[1,0],ends=[2,2]>(x) }",
    ),
    "topk": (
        9,
        13,
        "g (float[2,3,4,4] x) => (float[a,b,c,d] y, int64[a,b,c,d] i) { y, i = "
        "TopK<k=2,axis=3>(x) }",
    ),
    "topk10": (
        10,
        11,
        "g (float[2,3,4,4] x) => (float[a,b,c,d] y, int64[a,b,c,d] i) <int64[1] "
        "k={2}> { y, i = TopK(x, k) }",
    ),
    "upsample_nearest": (
        9,
        13,
        "g (float[2,3,4,4] x) => (float[N,C,H,W] y) <float[4] s={1,1,2,2}> { y = "
        'Upsample<mode="nearest">(x, s) }',
    ),
    "upsample_nearest_fraction": (
        9,
        21,
        "g (float[2,3,4,4] x) => (float[N,C,H,W] y) <float[4] s={1,1,1.7,2.3}> { "
        'y = Upsample<mode="nearest">(x, s) }',
    ),
    "upsample_linear": (
        9,
        13,
        "g (float[2,3,4,4] x) => (float[N,C,H,W] y) <float[4] s={1,1,2,2}> { y = "
        'Upsample<mode="linear">(x, s) }',
    ),
    "upsample_7": (
        8,
        13,
        "g (float[2,3,4,4] x) => (float[N,C,H,W] y) { y = "
        'Upsample<mode="nearest",scales=[1.0,1.0,2.0,3.0]>(x) }',
    ),
    "resize10_nearest_up": (
        10,
        11,
        "g (float[2,3,4,4] x) => (float[N,C,H,W] y) <float[4] s={1,1,1.5,2.5}> { "
        'y = Resize<mode="nearest">(x, s) }',
    ),
    "resize10_nearest_half": (
        10,
        13,
        "g (float[2,3,4,4] x) => (float[N,C,H,W] y) <float[4] s={1,1,0.5,0.5}> { "
        'y = Resize<mode="nearest">(x, s) }',
    ),
    "resize10_nearest_down": (
        10,
        18,
        "g (float[2,3,4,4] x) => (float[N,C,H,W] y) <float[4] s={1,1,0.8,0.7}> { "
        'y = Resize<mode="nearest">(x, s) }',
    ),
    "resize10_linear": (
        10,
        19,
        "g (float[2,3,4,4] x) => (float[N,C,H,W] y) <float[4] s={1,1,1.5,0.75}> { "
        'y = Resize<mode="linear">(x, s) }',
    ),
    "resize11_sizes": (
        11,
        13,
        "g (float[2,3,4,4] x) => (float[N,C,H,W] y) <float[0] e={}, int64[4] "
        'z={2,3,8,6}> { y = Resize<mode="linear">(x, e, e, z) }',
    ),
    "resize11_scales_of_no_elements": (
        11,
        13,
        "g (float[2,3,4,4] x) => (float[N,C,H,W] y) <float[0] r = {}, int64[4] z={2,3,8,6}> "
        "{ e = Identity(r) y = Resize(x, r, e, z) }",
    ),
    "upsample_computed_scales": (
        9,
        13,
        "g (float[2,3,4,4] x) => (float[N,C,H,W] y) <float[4] s={1,1,1.7,2.3}> "
        "{ e = Identity(s) y = Upsample(x, e) }",
    ),
    "thresholded_relu": (
        9,
        13,
        "g (float[2,3,4,4] x) => (float[N,C,H,W] y) { y = ThresholdedRelu<alpha=0.5>(x) }",
    ),
    "clip": (
        9,
        13,
        "g (float[2,3,4,4] x) => (float[N,C,H,W] y) { y = Clip<min=-0.5,max=1.5>(x) }",
    ),
    "clip_min_only": (
        10,
        13,
        "g (float[2,3,4,4] x) => (float[N,C,H,W] y) { y = Clip<min=0.25>(x) }",
    ),
    "clip_none": (
        10,
        12,
        "g (float[2,3,4,4] x) => (float[N,C,H,W] y) { y = Clip(x) }",
    ),
    "pad": (
        9,
        13,
        "g (float[2,3,4,4] x) => (float[N,C,H,W] y) { y = "
        "Pad<pads=[0,0,1,2,0,0,3,0],value=1.5>(x) }",
    ),
    "pad_zero": (
        10,
        19,
        "g (float[2,3,4,4] x) => (float[N,C,H,W] y) { y = Pad<pads=[0,0,1,2,0,0,3,0]>(x) }",
    ),
    "pad_reflect": (
        10,
        13,
        "g (float[2,3,4,4] x) => (float[N,C,H,W] y) { y = "
        'Pad<mode="reflect",pads=[0,0,1,1,0,0,1,1]>(x) }',
    ),
    "scatter": (
        9,
        13,
        "g (float[2,3,4,4] x) => (float[N,C,H,W] y) <int64[1,1,1,2] i={2,0}, "
        "float[1,1,1,2] u={9,8}> { y = Scatter<axis=3>(x, i, u) }",
    ),
    "dropout7": (
        9,
        13,
        "g (float[2,3,4,4] x) => (float[N,C,H,W] y) { y = Dropout<ratio=0.3>(x) }",
    ),
    "dropout_mask_unread": (
        9,
        13,
        "g (float[2,3,4,4] x) => (float[N,C,H,W] y) { y, m = Dropout<ratio=0.3>(x) }",
    ),
    "softmax_default": (
        12,
        13,
        "g (float[2,3,4,4] x) => (float[N,C,H,W] y) { y = Softmax(x) }",
    ),
    "softmax_axis2": (
        11,
        13,
        "g (float[2,3,4,4] x) => (float[N,C,H,W] y) { y = Softmax<axis=2>(x) }",
    ),
    "softmax_axis0": (
        11,
        13,
        "g (float[2,3,4,4] x) => (float[N,C,H,W] y) { y = Softmax<axis=0>(x) }",
    ),
    "softmax_negative": (
        11,
        13,
        "g (float[2,3,4,4] x) => (float[N,C,H,W] y) { y = Softmax<axis=-2>(x) }",
    ),
    "softmax_last": (
        11,
        13,
        "g (float[2,3,4,4] x) => (float[N,C,H,W] y) { y = Softmax<axis=3>(x) }",
    ),
    "softmax_minus1": (
        11,
        13,
        "g (float[2,3,4,4] x) => (float[N,C,H,W] y) { y = Softmax<axis=-1>(x) }",
    ),
    "logsoftmax": (
        9,
        13,
        "g (float[2,3,4,4] x) => (float[N,C,H,W] y) { y = LogSoftmax<axis=1>(x) }",
    ),
    "hardmax": (
        9,
        13,
        "g (float[2,3,4,4] x) => (float[N,C,H,W] y) { y = Hardmax<axis=2>(x) }",
    ),
    "reducesum": (
        11,
        13,
        "g (float[2,3,4,4] x) => (float[a,b] y) { y = ReduceSum<axes=[1,-1],keepdims=0>(x) }",
    ),
    "reducesum_all": (
        11,
        21,
        "g (float[2,3,4,4] x) => (float y) { y = ReduceSum<keepdims=0>(x) }",
    ),
    "split": (
        11,
        13,
        "g (float[2,3,4,4] x) => (float[a,b,c,d] y, float[e,f,g,h] z) { y, z = "
        "Split<axis=2,split=[1,3]>(x) }",
    ),
    "split_equal": (
        11,
        18,
        "g (float[2,3,4,4] x) => (float[a,b,c,d] y, float[e,f,g,h] z) { y, z = Split<axis=2>(x) }",
    ),
    "squeeze": (
        11,
        13,
        "g (float[2,3,4,4] x) => (float[a,b,c,d] y) { a = "
        "Unsqueeze<axes=[0,2]>(x) y = Squeeze<axes=[0,-4]>(a) }",
    ),
    "squeeze_all": (
        11,
        13,
        "g (float[2,3,4,4] x) => (float[a,b,c,d] y) { a = Unsqueeze<axes=[0]>(x) y = Squeeze(a) }",
    ),
    "batchnorm": (
        9,
        15,
        "g (float[2,3,4,4] x) => (float[N,C,H,W] y) <float[3] s={1,2,3}, float[3] "
        "b={0,1,2}, float[3] m={0.1,0.2,0.3}, float[3] v={1,2,3}> { y = "
        "BatchNormalization<epsilon=0.01>(x, s, b, m, v) }",
    ),
    "batchnorm8": (
        8,
        13,
        "g (float[2,3,4,4] x) => (float[N,C,H,W] y) <float[3] s={1,2,3}, float[3] "
        "b={0,1,2}, float[3] m={0.1,0.2,0.3}, float[3] v={1,2,3}> { y = "
        "BatchNormalization<spatial=1>(x, s, b, m, v) }",
    ),
    "roi_align": (
        11,
        16,
        "g (float[2,3,4,4] x) => (float[a,b,c,d] y) <float[1,4] r={0,0,3,3}, "
        "int64[1] i={1}> { y = RoiAlign<output_height=2,output_width=2>(x, r, i) "
        "}",
    ),
    "reducemean": (
        13,
        18,
        "g (float[2,3,4,4] x) => (float[N,C,H,W] y) { y = ReduceMean<axes=[-1,2]>(x) }",
    ),
    "reducemax": (
        12,
        20,
        "g (float[2,3,4,4] x) => (float[N,C,H,W] y) { y = ReduceMax<axes=[1]>(x) }",
    ),
    "reducel2": (
        13,
        18,
        "g (float[2,3,4,4] x) => (float[N,C,H,W] y) { y = ReduceL2<axes=[1]>(x) }",
    ),
    "grid_sample": (
        16,
        20,
        "g (float[2,3,4,4] x) => (float[N,C,H,W] y) <float[2,2,2,2] "
        "q={0,0.5,-0.5,1,0.2,0.3,-1,1,0,0,0.1,0.9,-0.7,0.4,0.6,0.6}> { y = "
        'GridSample<mode="bicubic">(x, q) }',
    ),
    "grid_sample_default": (
        16,
        20,
        "g (float[2,3,4,4] x) => (float[N,C,H,W] y) <float[2,2,2,2] "
        "q={0,0.5,-0.5,1,0.2,0.3,-1,1,0,0,0.1,0.9,-0.7,0.4,0.6,0.6}> { y = "
        "GridSample(x, q) }",
    ),
    "dft": (
        17,
        20,
        "g (float[2,3,4,1] x) => (float[a,b,c,d] y) { y = DFT(x) }",
    ),
    "lstm": (
        13,
        22,
        "g (float[5,2,3] x) => (float[a,b,c,d] y) <float[1,8,3] "
        "w={0.1,0.2,0.3,0.4,0.5,0.6,0.7,0.8,0.1,0.2,0.3,0.4,0.5,0.6,0.7,0.8,0.1,0.2,0.3,0.4,"
        "0.5,0.6,0.7,0.8}, "
        "float[1,8,2] "
        "r={0.1,0.2,0.3,0.4,0.5,0.6,0.7,0.8,0.1,0.2,0.3,0.4,0.5,0.6,0.7,0.8}> { y "
        "= LSTM<hidden_size=2>(x, w, r) }",
    ),
}
INPUTS: dict[str, Callable[[], Array]] = {
    "dft": lambda: floats(2, 3, 4, 1),
    "lstm": lambda: floats(5, 2, 3),
}

BLOCKED = {
    "training": (
        9,
        13,
        "g (float[2,3,4,4] x) => (float[a,b,c,d] y, float[3] u, float[3] w) "
        "<float[3] s={1,1,1}, float[3] b={0,0,0}, float[3] m={0,0,0}, float[3] "
        "v={1,1,1}> { y, u, w = BatchNormalization(x, s, b, m, v) }",
        14,
    ),
    "mask": (
        9,
        9,
        "g (float[2,3] x) => (float[2,3] y, float[2,3] m) { y, m = Dropout(x) }",
        13,
    ),
    "spatial": (
        8,
        8,
        "g (float[2,3] x) => (float[2,3] y) <float[3] s={1,1,1}, float[3] "
        "b={0,0,0}> { y = BatchNormalization<spatial=0>(x, s, b, b, s) }",
        13,
    ),
    "scan": (
        8,
        8,
        "g (float[1,2,3] x) => (float[1,2,3] y) { y = Scan <num_scan_inputs=1, "
        "body = b (float[3] i) => (float[3] o) { o = Neg(i) }> (, x) }",
        13,
    ),
    "resize_dynamic": (
        10,
        10,
        "g (float[1,1,2,2] x, float[4] s) => (float[a,b,c,d] y) { y = Resize(x, s) }",
        13,
    ),
    "resize_both_ways": (
        10,
        10,
        "g (float[1,1,4,4] x) => (float[a,b,c,d] y) <float[4] s={1,1,0.7,1.5}> { "
        "y = Resize(x, s) }",
        13,
    ),
    "half_pixel_nn": (
        11,
        12,
        "g (float[1,1,4,4] x) => (float[a,b,c,d] y) <float[0] r={}, float[4] "
        "s={1,1,2,2}> { y = "
        'Resize<mode="nearest",coordinate_transformation_mode="tf_half_pixel_for_nn">(x, '
        "r, s) }",
        13,
    ),
    "groups": (
        18,
        20,
        "g (float[2,4,3] x, float[2] s, float[2] b) => (float[2,4,3] y) { y = "
        "GroupNormalization<num_groups=2>(x, s, b) }",
        21,
    ),
}
