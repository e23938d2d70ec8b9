"""ONNX Runtime with weights in few bits and activations in float: MatMulNBits and its kin.

Measured on one core with AVX512-VNNI, ONNX Runtime 1.31, a product of 1 and of 128 rows with matrices
of 576 x 576 to 576 x 49152, milliseconds against float's (0.045, 1.01 for 576 -> 1536):

* accuracy_level 4 (activations rounded to 8 bits for each block inside the kernel, 46 dB) with 4 bits:
  0.014, 0.98 in blocks of 32; 0.013, 0.87 in 64; 0.010, 0.66 in 128. In blocks of 16: 0.017, 1.05.
* accuracy_level 0 (float products): 0.044, 1.13 with 4 bits; with 8 bits 0.85, 1.88: no fast kernel.
* 8 bits, level 4: 0.019, 0.82 in 32; 0.017, 0.70 in 64. 2 bits: 0.021, 1.84 in 32; 0.013, 0.97 in 64;
  0.010, 0.69 in 128; blocks of 16 and 256 have no fast kernel (1.4).
* MatMulBnb4 turns its weight into floats at every call: a decoding step of a language model takes
  three times float's.
"""

from __future__ import annotations

from qcompile.backends.devices import Device
from qcompile.ir.spec import QuantSpec
from qcompile.ir.target import Target, WeightForm

__all__ = ["ort_int2", "ort_int4", "ort_int8_weights", "ort_nf4"]

_TRIED = "tried ORT 1.31 on x86 with AVX512-VNNI"


def ort_int4(device: Device) -> Target:
    """4-bit weights in blocks of 64.

    SmolLM2-135M, head in 8 bits: GPTQ in blocks of 32 errs 0.3 % of perplexity less than in 64, but a prefill
    of 128 tokens takes 1.08 of float's time instead of 0.84, a decoding step 0.42 instead of 0.32.
    """
    return _target("ort-int4", device, WeightForm(4, 64, source=_TRIED))


def ort_int8_weights(device: Device) -> Target:
    """8-bit weights in blocks of 64."""
    return _target("ort-int8-weights", device, WeightForm(8, 64, source=_TRIED))


def ort_int2(device: Device) -> Target:
    """2-bit weights in blocks of 32, the smallest that has a fast kernel."""
    return _target("ort-int2", device, WeightForm(2, 32, blocks=(32, 64, 128), source=_TRIED))


def ort_nf4(device: Device) -> Target:
    """Indices into the NF4 table in blocks of 64: small, but slower than integers on a CPU."""
    return _target("ort-nf4", device, WeightForm(4, 64, codebook=True, source=_TRIED))


def _target(name: str, device: Device, form: WeightForm) -> Target:
    measured = "avx512_vnni" in device.features or "avx_vnni" in device.features
    note = (
        f"{device.name}: MatMulNBits with accuracy_level {form.accuracy_level}, blocks of "
        f"{form.block}" + ("" if measured else "; chosen on another CPU, not measured on this kind")
    )
    return Target(
        name=name,
        backend="ort",
        device=device.name,
        activation=QuantSpec("uint8", symmetric=False),
        weight=QuantSpec("uint8", symmetric=False, bits=form.bits),
        ops={},
        weights=form,
        notes=(note,),
        features=device.features,
    )
