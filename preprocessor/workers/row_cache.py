"""Finished rows that stay in the arena after their request, for requests with the same media.

An entry is a whole pixel tensor, with the key of each of its items. Requests with some of its items in the same order read them
where they are; others copy them. A key holds everything that can change a row (`ItemPlan.digest`), the form, and the scope
within which media may be shared. Normalized rows that are not here are made of uint8 rows that are.

Entries give way to requests: when a task needs memory, the entry that is worth least is dropped. Its worth is that of
GreedyDual-Size-Frequency (Cherkasova, 1998): seconds saved by a hit, times how often it is used, divided by its size, plus the
worth of the entry dropped last, so that entries not used for long go first. Two things differ. Uses count by their square root:
else the clip of a conversation that has ended stays in the place of those that go on. And the uses of dropped entries are
remembered, so that popular ones that return are not taken for new ones. Hit rates on traces of thousands of requests for clips of
four sizes, with 1 GiB: of conversations 0.69 as published, 0.76 so, 0.79 by LRU, and 0.80 with knowledge of the future
(`tests.bench.service.bounds`); of a Zipf workload (1,000 clips, s = 1) 0.74, 0.73, 0.70 and 0.84.

A tenth of the code of a library's cache would be glue here: the memory belongs to the arena, and an entry that a request reads
cannot be dropped.
"""

from __future__ import annotations

import enum
import heapq
import itertools
import math
from collections import Counter, OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from preprocessor.types.plan import ItemPlan, PixelPlan, Substitution
from preprocessor.types.request import PixelForm
from preprocessor.workers.ranges import Lease, Ranges

ItemKey = tuple[str, bytes, PixelForm]
"""Scope, `ItemPlan.digest`, form."""

_MOST_VOID = 64
_MOST_REMEMBERED = 1000


class Eviction(enum.Enum):
    """Why an entry was dropped."""

    SHARE = "share"
    """Entries may take `max_bytes` together."""
    WORK = "work"
    """A request needed the memory."""
    SUPERSEDED = "superseded"
    """Other entries have all of its items."""


@dataclass(slots=True, eq=False)
class _CachedTensor:
    """One entry.

    Attributes:
        lease: The cache's own.
        seconds: CPU seconds that making it took.
        use_count: Requests that it was made for, or that found it, earlier copies of it included.
        keys: Of the items that requests find here.
    """

    lease: Lease
    seconds: float
    use_count: int
    keys: set[ItemKey] = field(default_factory=set)
    worth: float = 0.0


@dataclass(frozen=True, slots=True, eq=False)
class CachedRows:
    """The finished rows of one item.

    Attributes:
        offset: Where they begin in the arena.
        form: That of the request, or UINT8.
        substitutions: (chosen frame, used frame) of its frames that could not be decoded.
    """

    tensor: _CachedTensor
    offset: int
    size_bytes: int
    form: PixelForm
    substitutions: tuple[tuple[int, int], ...]

    def share_lease(self) -> Lease:
        """A lease of the tensor that they lie in, for whoever reads them."""
        return self.tensor.lease.share()


class RowCache:
    """Finds and keeps finished rows; on the event loop alone.

    Args:
        rows: The memory in which tensors lie.
        max_bytes: What all entries may take together; 0 keeps nothing.
    Attributes:
        hit_count, joined_count, miss_count: Items that were found, that workers were writing already, or that were neither.
        eviction_counts: Entries dropped, by reason.
        saved_seconds: CPU seconds that making the found rows again would have taken.
    """

    def __init__(self, rows: Ranges, max_bytes: int) -> None:
        self._rows = rows
        self._max_bytes = max_bytes
        self._items: dict[ItemKey, CachedRows] = {}
        self._tensors: set[_CachedTensor] = set()
        self._order: list[
            tuple[float, int, _CachedTensor]
        ] = []  # heap by worth; an entry is void once its worth changes
        self._past_uses: OrderedDict[ItemKey, int] = OrderedDict()  # of items of entries that were dropped
        self._numbers = itertools.count()
        self._floor = 0.0  # the worth of the entry dropped last
        self.size_bytes = 0
        self.hit_count = 0
        self.joined_count = 0
        self.miss_count = 0
        self.saved_seconds = 0.0
        self.eviction_counts: Counter[Eviction] = Counter()

    def __len__(self) -> int:
        return len(self._tensors)

    @property
    def is_on(self) -> bool:
        return self._max_bytes > 0

    def may_keep(self, size_bytes: int) -> bool:
        """Whether a tensor of that size would be kept."""
        return 0 < size_bytes <= self._max_bytes

    def peek(self, scope: str, plan: PixelPlan) -> dict[int, CachedRows]:
        """As `find`, for one who does not read them yet, or whose request is counted already."""
        found: dict[int, CachedRows] = {}
        for index, item in enumerate(plan.items):
            for key in keys_of_source(scope, item, plan.form):
                if key in self._items:
                    found[index] = self._items[key]
                    break
        return found

    def find(self, scope: str, plan: PixelPlan) -> Mapping[int, CachedRows]:
        """The items of a plan whose rows are here, in its form or as uint8, by index."""
        if not self.is_on:
            return {}
        found = self.peek(scope, plan)
        self.hit_count += len(found)
        self.miss_count += len(plan.items) - len(found)
        for tensor in {rows.tensor for rows in found.values()}:
            tensor.use_count += 1
            self._set_worth(tensor)
        self.saved_seconds += sum(
            rows.tensor.seconds * rows.size_bytes / rows.tensor.lease.size_bytes for rows in found.values()
        )
        return found

    def count_joined(self, item_count: int) -> None:
        """A request has joined the making of so many items."""
        self.joined_count += item_count

    def add(
        self, scope: str, plan: PixelPlan, lease: Lease, seconds: float, substitutions: Sequence[Substitution]
    ) -> None:
        """Keep a finished tensor.

        Args:
            lease: Of its range; the cache takes one of its own.
            seconds: CPU seconds that making it took, or those that making it again is expected to take.
        """
        if not self.may_keep(lease.size_bytes):
            return
        keys = item_keys(scope, plan)
        if all(key in self._items for key in keys):
            return
        use_count = max(
            self._items[key].tensor.use_count if key in self._items else 1 + self._past_uses.pop(key, 0) for key in keys
        )
        tensor = _CachedTensor(lease.share(is_kept=True), seconds, use_count)
        self._tensors.add(tensor)
        self.size_bytes += lease.size_bytes
        row_bytes = plan.size_bytes // plan.row_count
        for index, (key, item) in enumerate(zip(keys, plan.items, strict=True)):
            replaced = self._items.get(key)
            if replaced is not None and replaced.tensor is not tensor:
                self._forget(replaced.tensor, key)
            used = tuple((one.frame_index, one.used_frame_index) for one in substitutions if one.item_index == index)
            offset = lease.offset + item.row_start * row_bytes
            self._items[key] = CachedRows(tensor, offset, item.rows.row_count * row_bytes, plan.form, used)
            tensor.keys.add(key)
        self._set_worth(tensor)
        while self.size_bytes > self._max_bytes:
            self._drop_least(Eviction.SHARE)

    def make_room(self, size_bytes: int, taken_bytes: int) -> None:
        """Drop entries until a request can take so much memory.

        Args:
            taken_bytes: What is taken of `rows`, entries included.
        """
        while taken_bytes + size_bytes > self._rows.size_bytes:
            before_bytes = self._rows.leased_bytes
            if not self.give_way():
                return
            taken_bytes -= before_bytes - self._rows.leased_bytes

    def give_way(self) -> bool:
        """Drop the entry that is worth least of those that nobody reads; False if there is none."""
        return self._drop_least(Eviction.WORK)

    def clear(self) -> None:
        """Drop everything."""
        for tensor in list(self._tensors):
            self._drop(tensor, Eviction.WORK)

    def _set_worth(self, tensor: _CachedTensor) -> None:
        tensor.worth = self._floor + math.sqrt(tensor.use_count) * tensor.seconds / tensor.lease.size_bytes
        heapq.heappush(self._order, (tensor.worth, next(self._numbers), tensor))
        if len(self._order) > 2 * len(self._tensors) + _MOST_VOID:
            self._order = [entry for entry in self._order if self._is_valid(entry)]
            heapq.heapify(self._order)

    def _is_valid(self, entry: tuple[float, int, _CachedTensor]) -> bool:
        return entry[-1] in self._tensors and entry[-1].worth == entry[0]

    def _drop_least(self, why: Eviction) -> bool:
        """Drop the entry that is worth least, for work only one that nobody reads; False if there is none."""
        in_use: list[tuple[float, int, _CachedTensor]] = []
        chosen: _CachedTensor | None = None
        while self._order and chosen is None:
            entry = heapq.heappop(self._order)
            if not self._is_valid(entry):
                continue
            if why is Eviction.WORK and not entry[-1].lease.is_sole:
                in_use.append(entry)
            else:
                chosen = entry[-1]
        for entry in in_use:
            heapq.heappush(self._order, entry)
        if chosen is not None:
            self._drop(chosen, why)
        return chosen is not None

    def _forget(self, tensor: _CachedTensor, key: ItemKey) -> None:
        """Requests find that item elsewhere from now on."""
        tensor.keys.discard(key)
        if not tensor.keys:
            self._drop(tensor, Eviction.SUPERSEDED)

    def _drop(self, tensor: _CachedTensor, why: Eviction) -> None:
        if why is not Eviction.SUPERSEDED:
            self._floor = max(self._floor, tensor.worth)
        for key in tensor.keys:
            del self._items[key]
            self._past_uses[key] = tensor.use_count
        while len(self._past_uses) > _MOST_REMEMBERED:
            self._past_uses.popitem(last=False)
        self._tensors.discard(tensor)
        self.size_bytes -= tensor.lease.size_bytes
        self.eviction_counts[why] += 1
        tensor.lease.release()


def item_keys(scope: str, plan: PixelPlan) -> list[ItemKey]:
    """The key of each item of a plan, in order."""
    return [(scope, item.digest, plan.form) for item in plan.items]


def keys_of_source(scope: str, item: ItemPlan, form: PixelForm) -> tuple[ItemKey, ItemKey]:
    """The keys of rows that an item's may be copied from or made of."""
    return (scope, item.digest, form), (scope, item.uint8_digest, PixelForm.UINT8)


def is_contiguous(rows: Sequence[CachedRows]) -> bool:
    """Whether these lie one after another in one tensor."""
    return all(
        after.tensor is before.tensor and before.offset + before.size_bytes == after.offset
        for before, after in itertools.pairwise(rows)
    )


def substitutions_of(rows: Mapping[int, CachedRows]) -> Iterator[Substitution]:
    """What was replaced in these items, as for the plan that they were found for."""
    for index, found in sorted(rows.items()):
        for chosen, used in found.substitutions:
            yield Substitution(index, chosen, used)
