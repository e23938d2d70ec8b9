"""What weights are multiplied with: gathered from the float model, as means and covariances.

Memory is bounded: the captured tensors of one sample and the covariances of one part of the layers
are alive at a time. Layers that do not fit together are served by further passes over the samples.
"""

from __future__ import annotations

import zlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar, cast

import numpy as np
import numpy.typing as npt
import onnx_ir as oir

from qcompile.calibrators.gram import GramStore, Window, block_count, columns, split_blocks
from qcompile.capture import capture, tensor_sizes
from qcompile.data.inputs import Feed
from qcompile.data.subset import every_fourth
from qcompile.ir.graph import attribute, constant
from qcompile.passes.quantizable import Site

__all__ = ["Gathering", "Source", "source_of", "unfit"]

Key = TypeVar("Key")

WIDEST = 1536
"""Inputs of one output channel whose covariances are all kept; wider layers are cut into runs."""

POSITIONS = (2048, 16384)
"""Least and most positions of a layer's input to learn from, over all samples."""

HELD_BYTES = 2 * 2**20
"""What is kept of each layer's held-back inputs, about."""

LIMIT = 256 * 2**20
"""Bytes of covariances and captured tensors held at once, unless a memory limit says otherwise."""


@dataclass(frozen=True)
class Source:
    """What a weight is multiplied with: a tensor, seen through a window.

    Attributes:
        tensor: its name.
        window: of a Conv, else None.
        turned: the tensor is read transposed (Gemm's transA).
        channels: of the tensor, for each group.
        blocks: runs of channels between which no covariance is kept.
    """

    tensor: str
    window: Window | None
    turned: bool
    channels: int
    blocks: int

    @property
    def groups(self) -> int:
        """Runs of channels that have weights of their own."""
        return 1 if self.window is None else self.window.group

    @property
    def width(self) -> int:
        """Values that one output channel is made of."""
        return self.channels * (1 if self.window is None else int(np.prod(self.window.kernel)))

    def covariance_bytes(self) -> int:
        """Of what a ``GramStore`` holds."""
        each = -(-self.width // self.blocks)
        return 8 * self.groups * self.blocks * each * each


def unfit(site: Site) -> str:
    """Why nothing can be learned about a site's weight; "" when it can."""
    array = constant(site.weight)
    if site.op_type not in ("Conv", "MatMul", "Gemm"):
        return f"{site.op_type} has no learned form"
    if array is None or (site.op_type == "MatMul" and array.ndim != 2):
        return "its weight is no matrix"
    if site.op_type == "Conv" and attribute(site.node, "auto_pad", "NOTSET") != "NOTSET":
        return "its padding follows from the input's shape"
    return ""


def source_of(site: Site) -> Source:
    """What the weight of a site (that is not ``unfit``) is multiplied with."""
    array, node = constant(site.weight), site.node
    shape = () if array is None else array.shape
    tensor = node.inputs[0]
    name = "" if tensor is None else tensor.name or ""
    if site.op_type != "Conv":
        turned = bool(attribute(node, "transA", 0)) if site.op_type == "Gemm" else False
        d = shape[1] if site.op_type == "Gemm" and attribute(node, "transB", 0) else shape[0]
        return Source(name, None, turned, d, block_count(d, 1, WIDEST))
    rank = len(shape) - 2
    group = cast(int, attribute(node, "group", 1))
    kernel = tuple(int(k) for k in shape[2:])
    window = Window(
        kernel,
        cast("tuple[int, ...]", attribute(node, "strides", (1,) * rank)),
        cast("tuple[int, ...]", attribute(node, "pads", (0,) * 2 * rank)),
        cast("tuple[int, ...]", attribute(node, "dilations", (1,) * rank)),
        group,
    )
    width = int(np.prod(kernel))
    blocks = block_count(int(shape[1]), width, WIDEST) if group == 1 else 1
    return Source(name, window, False, int(shape[1]), blocks)


@dataclass
class Gathering:
    """How inputs are gathered.

    Attributes:
        model: the float model.
        feeds: the samples.
        work: a temporary folder.
        held: indices of the samples that judge instead of teaching; None: every fourth.
        second: gather covariances, not means alone.
        seed: of the positions drawn.
        threads: inside operators; None is ONNX Runtime's choice.
        custom_ops: library with custom operators.
    """

    model: oir.Model
    feeds: Sequence[Feed]
    work: Path
    held: Collection[int] | None = None
    second: bool = True
    seed: int = 0
    threads: int | None = None
    custom_ops: Path | None = None

    def gather(self, sources: Sequence[Source]) -> dict[Source, GramStore]:
        """Mean, covariance and held-back columns of each source."""
        stores = {source: GramStore(self.second) for source in sources}
        for index, values in enumerate(self._runs(list(dict.fromkeys(s.tensor for s in sources)))):
            for source, store in stores.items():
                x = values[source.tensor]
                self._take(index, source, store, x.T if source.turned else x)
        return stores

    def _runs(self, tensors: Sequence[str]) -> Iterator[Feed]:
        path = self.work / "capture.onnx"
        return capture(
            self.model,
            tensors,
            self.feeds,
            path,
            custom_ops=self.custom_ops,
            threads=self.threads,
        )

    def _take(
        self, index: int, source: Source, store: GramStore, x: npt.NDArray[np.generic]
    ) -> None:
        total = len(self.feeds)
        judges = every_fourth(total) if self.held is None else self.held
        rng = np.random.default_rng([self.seed, index, zlib.crc32(source.tensor.encode())])
        if index in judges or total == 1:
            size = HELD_BYTES // (4 * source.groups * source.width * max(1, len(judges)))
            store.held.append(columns(x, source.window, max(16, size), rng))
        if index in judges:
            return
        least, most = POSITIONS
        wanted = min(max(least, 4 * source.width), most) if self.second else least
        taken = columns(x, source.window, -(-wanted // (total - len(judges))), rng)
        if source.blocks > 1:
            taken = split_blocks(taken, source.channels, source.blocks)
        store.update(taken)

    def sizes(self, tensors: Sequence[str]) -> dict[str, int]:
        """Bytes of each tensor in the largest sample."""
        largest = max(self.feeds, key=lambda feed: sum(a.size for a in feed.values()))
        path = self.work / "sizes.onnx"
        return tensor_sizes(self.model, tensors, largest, path, custom_ops=self.custom_ops)

    def parts(self, wanted: Mapping[Key, Sequence[Source]], limit: int) -> Iterator[list[Key]]:
        """Runs of ``wanted`` whose sources fit ``limit`` bytes together; at least one each."""
        tensors = dict.fromkeys(s.tensor for sources in wanted.values() for s in sources)
        sizes = self.sizes(list(tensors))
        part: list[Key] = []
        costs: dict[object, int] = {}
        for key, sources in wanted.items():
            new: dict[object, int] = {s.tensor: sizes[s.tensor] for s in sources}
            if self.second:
                new.update({s: s.covariance_bytes() for s in sources})
            if part and sum({**costs, **new}.values()) > limit:
                yield part
                part, costs = [], {}
            part.append(key)
            costs.update(new)
        if part:
            yield part
