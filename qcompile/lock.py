"""qcompile.lock: what a compile depended on and decided, so that it can be replayed to the same bytes.

Ranges and the plan come from measurements (data through floating point, clocks); they are recorded
whole, not recomputed. Hashes of model, data and output say whether the replay is the same compile.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from qcompile.ir.affine import TensorRange
from qcompile.ir.errors import OptionError
from qcompile.ir.plan import PrecisionPlan

__all__ = ["Lock"]

LOCK_VERSION = 1


@dataclass(frozen=True)
class Lock:
    """One compile.

    Attributes:
        inputs: what it depended on: sha256 of model and data, target, device, options, versions.
        ranges: tensor name -> range.
        plan: the plan that was lowered.
        outputs: file name -> sha256.
        learned: sha256 of learned.npz, "" when nothing was learned.
        factors: tensor -> k of the factors 2^k that its channels were divided by.
    """

    inputs: Mapping[str, Any]
    ranges: Mapping[str, TensorRange]
    plan: PrecisionPlan
    outputs: Mapping[str, str]
    learned: str = ""
    factors: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    def to_json(self) -> str:
        """Deterministic text; floats as hexadecimal, exact to the bit."""
        content = {
            "version": LOCK_VERSION,
            "inputs": dict(self.inputs),
            "ranges": {
                name: [_hex(r.low), _hex(r.high), r.method]
                for name, r in sorted(self.ranges.items())
            },
            "plan": json.loads(self.plan.to_json()),
            "outputs": dict(self.outputs),
            "learned": self.learned,
        }
        if self.factors:
            content["factors"] = {n: list(k) for n, k in sorted(self.factors.items())}
        return json.dumps(content, indent=0, sort_keys=True) + "\n"

    @classmethod
    def read(cls, path: Path) -> Lock:
        """Read a lock file.

        Raises:
            OptionError: missing, not JSON, or of another version.
        """
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if content["version"] != LOCK_VERSION:
                raise OptionError(
                    f"'{path}' has lock version {content['version']}; this qcompile reads {LOCK_VERSION}: "
                    "compile without --locked to write a new one"
                )
            ranges = {
                name: TensorRange(_unhex(low), _unhex(high), method)
                for name, (low, high, method) in content["ranges"].items()
            }
            plan = PrecisionPlan.from_json(json.dumps(content["plan"]))
            learned = content.get("learned", "")
            factors = {n: tuple(map(int, k)) for n, k in content.get("factors", {}).items()}
            return cls(content["inputs"], ranges, plan, content["outputs"], learned, factors)
        except FileNotFoundError as e:
            raise OptionError(
                f"--locked needs '{path}', which does not exist; compile once without --locked, "
                "then commit the qcompile.lock that lies in the output folder"
            ) from e
        except (OSError, ValueError, KeyError, TypeError) as e:
            raise OptionError(f"'{path}' is not a readable qcompile.lock: {e}") from e

    def check_inputs(self, now: Mapping[str, Any], path: Path) -> None:
        """Compare what this compile depends on with what is locked.

        Raises:
            OptionError: something differs; names all of it.
        """
        keys = sorted(set(self.inputs) | set(now))
        differing = [k for k in keys if self.inputs.get(k) != now.get(k)]
        if differing:
            listed = "; ".join(
                f"{k}: locked {_short(self.inputs.get(k))}, now {_short(now.get(k))}"
                for k in differing
            )
            raise OptionError(
                f"--locked: this is not the compile of '{path}' ({listed}); "
                "restore what changed, or compile without --locked to renew the lock"
            )

    def check_outputs(self, now: Mapping[str, str], path: Path) -> None:
        """Compare the bytes made with the bytes locked.

        Raises:
            OptionError: a file differs.
        """
        differing = [k for k, v in sorted(self.outputs.items()) if now.get(k) != v]
        if differing:
            raise OptionError(
                f"--locked: {', '.join(differing)} came out with other bytes than in '{path}'; "
                "the versions of qcompile, onnx or onnx-ir differ from the locked ones"
            )


def _hex(array: npt.ArrayLike) -> list[str]:
    return [float(v).hex() for v in np.atleast_1d(array)]


def _unhex(texts: list[str]) -> Any:
    values = np.array([float.fromhex(t) for t in texts], np.float64)
    return values[0] if values.size == 1 else values


def _short(value: object) -> str:
    text = str(value)
    return text[:12] if len(text) == 64 else text
