"""Weights in few bits by ONNX Runtime's quantizer, in whatever interpreter has it.

    python benchmarks/weights_peer.py KIND MODEL.onnx SAMPLES OUT.onnx BITS BLOCK

KIND: default, rtn, hqq, gptq or k_quant of its MatMulNBits quantizer, or dynamic for dynamic INT8.
SAMPLES is a folder of .npz files, read by gptq alone. Activations may be rounded to 8 bits inside the
kernel (accuracy_level 4), as qcompile's models do.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np

ROUNDED = 4
"""accuracy_level: without it 4-bit weights are slower than float's."""


def main(kind: str, model: str, samples: str, out: str, *grid: str) -> None:
    """Quantize; the tool's own exception says what is wrong."""
    bits, block = map(int, grid)
    if kind == "dynamic":
        from onnxruntime.quantization import quantize_dynamic

        quantize_dynamic(model, out)
        return
    import onnx
    from onnxruntime.quantization import CalibrationDataReader
    from onnxruntime.quantization import matmul_nbits_quantizer as nbits

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.left = iter(sorted(Path(samples).glob("*.npz")))

        def get_next(self) -> Any:
            file = next(self.left, None)
            if file is None:
                return None
            with np.load(file) as arrays:
                return {name: arrays[name] for name in arrays.files}

    configs: dict[str, Any] = {
        "default": lambda: nbits.DefaultWeightOnlyQuantConfig(
            block_size=block, bits=bits, accuracy_level=ROUNDED
        ),
        "rtn": nbits.RTNWeightOnlyQuantConfig,
        "hqq": lambda: nbits.HQQWeightOnlyQuantConfig(block_size=block, bits=bits),
        "gptq": lambda: nbits.GPTQWeightOnlyQuantConfig(Reader(), block_size=block),
        "k_quant": nbits.KQuantWeightOnlyQuantConfig,
    }
    tool = nbits.MatMulNBitsQuantizer(
        onnx.load(model),
        block_size=block,
        accuracy_level=ROUNDED,
        algo_config=configs[kind](),
    )
    tool.process()
    onnx.save(tool.model.model, out)


if __name__ == "__main__":
    try:
        main(*sys.argv[1:7])
    except Exception as e:
        text = next((line for line in str(e).splitlines() if line.strip()), "no message")
        print(f"error: {type(e).__name__}: {text.strip()}", file=sys.stderr)
        raise
