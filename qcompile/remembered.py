"""A session whose outputs for known samples lie on disk, so that it need not stay open for them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from qcompile.backends.ort import Feed, Session
from qcompile.measure import LoadResult
from qcompile.segmented import feed_digest

__all__ = ["RememberedSession"]

ON_DISK = 4 << 30
"""Bytes of outputs that are remembered; samples beyond are run again."""


class RememberedSession(Session):
    """Like the session that ``opens`` gives; the outputs of ``feeds`` are computed once.

    Attributes:
        load: how the model opened by itself in a gate, for the next one with the same samples.
    """

    load: LoadResult | None = None

    def __init__(
        self,
        opens: Callable[[], Session],
        feeds: Sequence[Feed],
        folder: Path,
        *,
        most: int = ON_DISK,
    ) -> None:
        """Open it.

        Args:
            opens: gives the session, again after ``release``.
            feeds: the samples whose outputs are worth remembering.
            folder: where they lie; made if it is not there.
            most: bytes that may lie there.
        """
        self._opens, self._folder, self._left = opens, folder, most
        self._session: Session | None = opens()
        self.inputs, self.outputs = self._session.inputs, self._session.outputs
        self._names = [port.name for port in self.outputs]
        self._known = {feed_digest(self.inputs, feed) for feed in feeds}
        folder.mkdir(parents=True, exist_ok=True)

    @property
    def raw(self) -> Any:
        """The runtime's session, opened if it is not."""
        return self._opened().raw

    def release(self) -> None:
        """Give the session's memory back; what is remembered stays."""
        self._session = None

    def run(self, feed: Feed, outputs: Sequence[str] | None = None) -> dict[str, Any]:
        """The outputs by name; mapped where they are remembered.

        Raises:
            ModelError: the runtime refuses the feed, or fails.
        """
        names = self._names if outputs is None else list(outputs)
        key = feed_digest(self.inputs, feed)
        if key not in self._known:
            return self._opened().run(feed, names)
        place = self._folder / key
        if not place.is_dir():
            found = self._opened().run(feed)
            if not self._keep(place, found):
                return {name: found[name] for name in names}
        at = {name: i for i, name in enumerate(self._names)}
        return {n: np.load(place / f"{at[n]}.npy", mmap_mode="r") for n in names}

    def _opened(self) -> Session:
        if self._session is None:
            self._session = self._opens()
        return self._session

    def _keep(self, place: Path, found: Mapping[str, Any]) -> bool:
        """Whether the outputs could be stored: there is room, and all of them are plain arrays."""
        plain = [a for a in found.values() if isinstance(a, np.ndarray) and a.dtype != object]
        size = sum(array.nbytes for array in plain)
        if len(plain) < len(found) or size > self._left:
            return False
        draft = place.with_suffix(".part")
        draft.mkdir(exist_ok=True)
        for i, name in enumerate(self._names):
            np.save(draft / f"{i}.npy", found[name], allow_pickle=False)
        draft.rename(place)
        self._left -= size
        return True
