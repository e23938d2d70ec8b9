"""Calibration caches as TensorRT documents and writes them."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qcompile.backends.trt_calibration import (
    is_calibration_cache,
    read_calibration_cache,
    write_calibration_cache,
)
from qcompile.ir.errors import CalibrationError

# as TensorRT's samples show it: 0x3c010a14 is 0.00787594
CACHE = """TRT-8601-EntropyCalibration2
input: 3c010a14
/layer1/Conv_output_0: 3d9b1c2a
(Unnamed Layer* 12) [Constant]_output: 0
a: b: 3f800000
"""


def test_scales_are_floats_written_most_significant_digit_first() -> None:
    found = read_calibration_cache(CACHE)
    assert list(found) == [
        "input",
        "/layer1/Conv_output_0",
        "(Unnamed Layer* 12) [Constant]_output",
        "a: b",
    ]
    assert found["input"] == pytest.approx(0.00787594, rel=1e-5)
    assert found["a: b"] == 1.0
    assert found["(Unnamed Layer* 12) [Constant]_output"] == 0.0


@given(
    st.dictionaries(
        st.text("abc/_.: 0", min_size=1).map(str.strip).filter(bool), st.floats(1e-20, 1e20)
    )
)
def test_what_is_written_is_read(peaks: dict[str, float]) -> None:
    text = write_calibration_cache(peaks)
    assert is_calibration_cache(text)
    scales = read_calibration_cache(text)
    assert {n: np.float32(p / 127) for n, p in peaks.items()} == scales


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (
            "input: 3c010a14\n",
            "begins with 'input: 3c010a14'; .* begins with TRT-VERSION-ALGORITHM",
        ),
        ("TRT-8601-EntropyCalibration2\ninput 3c\n", "line 2: 'input 3c' is not 'tensor: eight"),
        (
            "TRT-8601-EntropyCalibration2\nx: " + struct.pack(">f", -1.0).hex() + "\n",
            "line 2: the scale of 'x' is -1.0; needed: 0 or more",
        ),
        ("TRT-8601-EntropyCalibration2\nx: 7fc00000\n", "the scale of 'x' is nan"),
    ],
)
def test_what_is_no_cache_is_said(text: str, found: str) -> None:
    with pytest.raises(CalibrationError, match=found):
        read_calibration_cache(text)
