"""Which items one engine has said that it holds."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence

from engine_client.contract.tensors import Array

MAX_ITEMS = 1 << 14
"""About 3 MB. An engine that holds more items than this is sent the pixels of those named longest ago."""


class HeldItems:
    """Remembers hashes, up to `MAX_ITEMS`; those named longest ago are forgotten first.

    It may be wrong, as nobody tells when an engine drops an item, restarts, or is another one behind the same address. The engine
    finds out with each prompt, so this needs no more than to be right mostly.
    """

    def __init__(self) -> None:
        self._hashes: OrderedDict[bytes, None] = OrderedDict()

    def has(self, hashes: Sequence[bytes]) -> bool:
        """Whether the engine has said of all of these that it holds them."""
        return bool(hashes) and all(each in self._hashes for each in hashes)

    def learn(self, hashes: Sequence[bytes], is_held: Sequence[bool]) -> None:
        """The engine has said of each of these whether it holds it."""
        for each, held in zip(hashes, is_held, strict=False):
            if held:
                self._hashes[each] = None
                self._hashes.move_to_end(each)
            else:
                self._hashes.pop(each, None)
        while len(self._hashes) > MAX_ITEMS:
            self._hashes.popitem(last=False)

    def forget(self, hashes: Iterable[bytes]) -> None:
        """The engine does not hold all of these."""
        for each in hashes:
            self._hashes.pop(each, None)

    def clear(self) -> None:
        """What answers next may be another engine."""
        self._hashes.clear()


def hashes_of(item_hashes: Array | None) -> tuple[bytes, ...]:
    """One for each item of `item_hash`; copies, so that no memory of the caller is held."""
    return () if item_hashes is None else tuple(each.tobytes() for each in item_hashes)
