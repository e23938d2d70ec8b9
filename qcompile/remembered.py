"""A session whose outputs for known samples lie on disk, so that it need not stay open for them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from qcompile.backends.ort import Feed, Session
from qcompile.child import Child
from qcompile.kept_outputs import keep_outputs, kept_outputs
from qcompile.measure import LoadResult
from qcompile.opened import OpenedModel
from qcompile.segmented import feed_digest

__all__ = ["RememberedSession"]

ON_DISK = 4 << 30
"""Bytes of outputs that are remembered; samples beyond are run again."""


class RememberedSession(Session):
    """Like the session that ``opens`` gives; the outputs of ``feeds`` are computed once.

    Attributes:
        load: how the model opened by itself in a gate, for the next one with the same samples.
        stands: the model in a process of its own, where it was opened in one.
    """

    load: LoadResult | None = None

    def __init__(
        self,
        opens: Callable[[], Session],
        feeds: Sequence[Feed],
        folder: Path,
        *,
        most: int = ON_DISK,
        stands: OpenedModel | None = None,
    ) -> None:
        """Open it, unless it stands open elsewhere.

        Args:
            opens: gives the session, again after ``release``.
            feeds: the samples whose outputs are worth remembering.
            folder: where they lie; made if it is not there.
            most: bytes that may lie there.
            stands: what runs samples in place of ``opens`` where it can.
        """
        self._opens, self._folder, self._left = opens, folder, most
        self._session: Session | None = None
        self.stands = stands
        face = stands or self._opened()
        self.inputs, self.outputs = face.inputs, face.outputs
        self._names = [port.name for port in self.outputs]
        self._known = {feed_digest(self.inputs, feed) for feed in feeds}
        folder.mkdir(parents=True, exist_ok=True)

    @property
    def raw(self) -> Any:
        """The runtime's session, opened if it is not."""
        return self._opened().raw

    @property
    def child(self) -> Child | None:
        """The process in which the model stands open, where it does."""
        found = None if self.stands is None else self.stands.child
        return found if found is not None and found.alive else None

    def release(self) -> None:
        """Give the session's memory back; what is remembered stays."""
        self._session = None

    def try_out(self, feeds: Sequence[Feed]) -> None:
        """Have the model that stands open elsewhere run these first; what they give is remembered."""
        if self.stands is not None:
            self._left = self.stands.try_out(self._missing(feeds), self._left)
            self.load = self.stands.load

    def remember(self, feeds: Sequence[Feed]) -> None:
        """Have the outputs of these now, where that needs no opening."""
        missing = self._missing(feeds)
        if self.stands is None or self.child is None:
            for feed in missing.values():
                self.run(feed)
        elif missing:
            self._left = self.stands.keep_outputs(missing, self._left)

    def _missing(self, feeds: Sequence[Feed]) -> dict[Path, Feed]:
        """The feeds, which are worth remembering from now on, that were not run yet, by place."""
        places = {self._folder / feed_digest(self.inputs, feed): feed for feed in feeds}
        self._known |= {place.name for place in places}
        return {place: feed for place, feed in places.items() if not place.is_dir()}

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
            kept = keep_outputs(place, found, self._left)
            self._left -= kept
            if not kept:
                return {name: found[name] for name in names}
        at = {name: i for i, name in enumerate(self._names)}
        return dict(zip(names, kept_outputs(place, [at[n] for n in names]), strict=True))

    def _opened(self) -> Session:
        if self._session is None:
            self._session = self._opens()
        return self._session
