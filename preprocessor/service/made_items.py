"""Items whose pixels were made for the engine before, and what was told of them: an engine that holds them needs no pixels."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from preprocessor.types.plan import Substitution

Hashes = npt.NDArray[np.uint8]
"""`item_hash` of a prompt, [M, 32]."""


class MadeItems:
    """Remembers which frames of an item could not be decoded, so that a report says it even where no frame is decoded.

    Args:
        max_count: Items that it remembers; those made longest ago are forgotten first. 0 remembers none.
    """

    def __init__(self, max_count: int = 1 << 14) -> None:
        self._max_count = max_count
        self._used: OrderedDict[bytes, tuple[tuple[int, int], ...]] = OrderedDict()

    def add(self, hashes: Hashes, substitutions: Sequence[Substitution]) -> None:
        """The pixels of these items were made."""
        for index, key in enumerate(_keys(hashes)):
            used = tuple((one.frame_index, one.used_frame_index) for one in substitutions if one.item_index == index)
            self._used[key] = used
            self._used.move_to_end(key)
        while len(self._used) > self._max_count:
            self._used.popitem(last=False)

    def find(self, hashes: Hashes) -> tuple[Substitution, ...] | None:
        """What was replaced in these items; None if one of them is not remembered."""
        keys = list(_keys(hashes))
        if not all(key in self._used for key in keys):
            return None
        return tuple(Substitution(index, *pair) for index, key in enumerate(keys) for pair in self._used[key])


def scoped_hashes(hashes: Hashes, scope: str) -> Hashes:
    """Other hashes in each scope, so that an engine's caches do not tell one caller what another has sent; the same in ""."""
    if not scope:
        return hashes
    digests = [hashlib.sha256(scope.encode() + b"\0" + key).digest() for key in _keys(hashes)]
    return np.frombuffer(b"".join(digests), np.uint8).reshape(hashes.shape)


def _keys(hashes: npt.NDArray[Any]) -> Iterator[bytes]:
    return (row.tobytes() for row in hashes)
