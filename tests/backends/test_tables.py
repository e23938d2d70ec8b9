"""The tables are data that hold together."""

from __future__ import annotations

import onnx
import pytest

from qcompile.backends.tables import get_target, target_names
from qcompile.ir.errors import TargetError


def test_unknown_targets_and_devices_name_the_nearest() -> None:
    with pytest.raises(TargetError, match="target 'ort-int5' is unknown; nearest: ort-int"):
        get_target("ort-int5")
    with pytest.raises(TargetError, match="device 'x86-vni' is unknown; nearest: x86-vnni"):
        get_target("ort-int8", "x86-vni")


@pytest.mark.parametrize("name", target_names())
def test_rows_are_operators_that_exist_and_name_their_source(name: str) -> None:
    target = get_target(name)
    known = {schema.name for schema in onnx.defs.get_all_schemas() if schema.domain == ""}
    assert not set(target.ops) & set(target.left_float)
    assert set(target.left_float) <= known
    for op_type, row in target.ops.items():
        assert row.op_type == op_type
        assert op_type in known
        assert row.source, op_type
        assert set(row.absorbs) <= set(target.ops), op_type
        attributes = onnx.defs.get_schema(op_type, 17).attributes
        assert set(row.allowed) <= set(attributes), op_type


def test_the_device_decides_the_weights_bits_and_the_report_says_so() -> None:
    with_vnni, without = get_target("ort-int8", "x86-vnni"), get_target("ort-int8", "x86-avx2")
    assert (with_vnni.weight.qmax, without.weight.qmax) == (127, 63)
    assert "7-bit weights" in without.notes[0]
    assert get_target("ort-int8", "arm64-dotprod").weight.qmax == 127
    assert "not run here" in get_target("ort-int8", "arm64-dotprod").notes[0]
