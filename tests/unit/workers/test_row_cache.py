"""What the cache of finished rows keeps, finds and drops."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from preprocessor.types.plan import Grid, ItemPlan, ItemRows, PixelPlan, Substitution
from preprocessor.types.request import Modality, PixelForm
from preprocessor.types.source import ImageInfo
from preprocessor.workers.arena import Arena
from preprocessor.workers.ranges import Lease, Ranges
from preprocessor.workers.row_cache import Eviction, RowCache, is_contiguous, substitutions_of

MIB = 1 << 20
SIZE_BYTES = 16 * MIB
ROW_BYTES = 1 << 10


@pytest.fixture
def rows() -> Iterator[Ranges]:
    arena = Arena.create(SIZE_BYTES)
    yield Ranges(arena, 0, SIZE_BYTES, 0)
    arena.close()


def plan_of(*items: tuple[str, int], form: PixelForm = PixelForm.UINT8) -> PixelPlan:
    """A plan of items by name and size in MiB."""
    plans: list[ItemPlan] = []
    row_start = 0
    for name, size_mib in items:
        row_count = size_mib * MIB // ROW_BYTES
        rows = ItemRows(1, row_count, 1, 1, 1, Grid(1, 1, row_count))
        source = ImageInfo(width_px=1, height_px=1, format="PNG", decoder="pillow")
        uint8_digest = name.encode().ljust(32)
        digest = (
            uint8_digest if form in (PixelForm.UINT8, PixelForm.FP32) else f"{name} {form.value}".encode().ljust(32)
        )
        plans.append(
            ItemPlan(
                name, Modality.IMAGE, source, "pillow", None, bytes(32), digest, uint8_digest, rows, row_start=row_start
            )
        )
        row_start += row_count
    return PixelPlan(tuple(plans), row_start, ROW_BYTES, form, row_start * ROW_BYTES, "pyav")


def keep(cache: RowCache, rows: Ranges, plan: PixelPlan, *, seconds: float = 1.0, scope: str = "") -> Lease:
    """Make the tensor of a plan, as a request does, and let the request end."""
    lease = rows.lease(plan.size_bytes)
    assert lease is not None
    cache.add(scope, plan, lease, seconds, ())
    lease.release()
    return lease


def test_what_was_made_is_found_by_scope_digest_and_form(rows: Ranges) -> None:
    cache = RowCache(rows, 8 * MIB)
    lease = keep(cache, rows, plan_of(("a", 1), ("b", 2), form=PixelForm.FP16), scope="someone")
    found = cache.find("someone", plan_of(("a", 1), ("b", 2), form=PixelForm.FP16))
    assert [one.offset for one in found.values()] == [lease.offset, lease.offset + MIB]
    assert is_contiguous(list(found.values()))
    assert cache.find("another", plan_of(("a", 1), form=PixelForm.FP16)) == {}
    assert cache.find("someone", plan_of(("a", 1), form=PixelForm.BF16)) == {}
    assert list(cache.find("someone", plan_of(("c", 1), ("b", 2), form=PixelForm.FP16))) == [1]
    assert (cache.hit_count, cache.miss_count) == (3, 3)


@pytest.mark.parametrize("form", [PixelForm.BF16, PixelForm.FP32])
def test_uint8_rows_are_found_for_every_form_that_is_not_here_itself(rows: Ranges, form: PixelForm) -> None:
    cache = RowCache(rows, 8 * MIB)
    keep(cache, rows, plan_of(("a", 1)))
    assert [one.form for one in cache.find("", plan_of(("a", 1), form=form)).values()] == [PixelForm.UINT8]
    keep(cache, rows, plan_of(("a", 1), form=form))
    assert [one.form for one in cache.find("", plan_of(("a", 1), form=form)).values()] == [form]
    assert [one.form for one in cache.find("", plan_of(("a", 1))).values()] == [PixelForm.UINT8]


def test_items_in_another_order_are_found_but_not_in_one_piece(rows: Ranges) -> None:
    cache = RowCache(rows, 8 * MIB)
    keep(cache, rows, plan_of(("a", 1), ("b", 2)))
    assert not is_contiguous(list(cache.find("", plan_of(("b", 2), ("a", 1))).values()))
    assert not is_contiguous(list(cache.find("", plan_of(("a", 1), ("a", 1))).values()))


def test_kept_rows_are_not_counted_as_taken_until_a_request_reads_them(rows: Ranges) -> None:
    cache = RowCache(rows, 8 * MIB)
    keep(cache, rows, plan_of(("a", 2)))
    assert (rows.leased_bytes, rows.kept_bytes) == (2 * MIB, 2 * MIB)
    lease = cache.find("", plan_of(("a", 2)))[0].share_lease()
    assert (rows.leased_bytes, rows.kept_bytes) == (2 * MIB, 0)
    lease.release()
    assert rows.kept_bytes == 2 * MIB
    cache.clear()
    assert (rows.leased_bytes, rows.kept_bytes, cache.size_bytes) == (0, 0, 0)


def test_entries_beyond_the_share_push_out_those_that_save_least_a_byte(rows: Ranges) -> None:
    cache = RowCache(rows, 6 * MIB)
    keep(cache, rows, plan_of(("dear", 2)), seconds=10)
    keep(cache, rows, plan_of(("cheap", 2)), seconds=1)
    keep(cache, rows, plan_of(("middle", 2)), seconds=5)
    keep(cache, rows, plan_of(("new", 2)), seconds=5)
    kept = [name for name in ("dear", "cheap", "middle", "new") if cache.find("", plan_of((name, 2)))]
    assert kept == ["dear", "middle", "new"]
    assert cache.eviction_counts == {Eviction.SHARE: 1}


def test_what_is_not_used_for_long_goes_although_it_was_dear(rows: Ranges) -> None:
    cache = RowCache(rows, 4 * MIB)
    keep(cache, rows, plan_of(("dear", 2)), seconds=10)
    for number in range(30):
        keep(cache, rows, plan_of((f"cheap {number}", 2)), seconds=1)
    assert not cache.find("", plan_of(("dear", 2)))


def test_an_entry_that_is_read_does_not_give_way(rows: Ranges) -> None:
    cache = RowCache(rows, 8 * MIB)
    keep(cache, rows, plan_of(("read", 2)), seconds=1)
    keep(cache, rows, plan_of(("idle", 2)), seconds=10)
    reading = cache.find("", plan_of(("read", 2)))[0].share_lease()
    assert cache.give_way()
    assert not cache.find("", plan_of(("idle", 2)))
    assert not cache.give_way()
    reading.release()
    assert cache.give_way()
    assert rows.leased_bytes == 0


def test_room_is_made_by_dropping_no_more_than_it_takes(rows: Ranges) -> None:
    cache = RowCache(rows, SIZE_BYTES)
    for number in range(4):
        keep(cache, rows, plan_of((f"{number}", 3)), seconds=1 + number)
    cache.make_room(7 * MIB, rows.leased_bytes)
    assert rows.leased_bytes == 9 * MIB
    cache.make_room(7 * MIB, rows.leased_bytes)
    assert len(cache) == 3


def test_hits_without_end_take_no_memory(rows: Ranges) -> None:
    cache = RowCache(rows, SIZE_BYTES)
    for name in ("a", "b"):
        keep(cache, rows, plan_of((name, 3)))
    for _ in range(1000):
        cache.find("", plan_of(("a", 3)))
    assert len(cache._order) < 100
    assert cache.give_way()
    assert list(cache.find("", plan_of(("a", 3), ("b", 3)))) == [0]


def test_an_entry_that_is_read_is_not_dropped_for_work_and_may_be_later(rows: Ranges) -> None:
    cache = RowCache(rows, SIZE_BYTES)
    for number in range(2):
        keep(cache, rows, plan_of((f"{number}", 3)), seconds=1 + number)
    reading = cache.find("", plan_of(("1", 3)))[0].share_lease(), cache.find("", plan_of(("0", 3)))[0].share_lease()
    assert not cache.give_way()
    assert len(cache) == 2
    reading[0].release()
    assert cache.give_way()
    assert list(cache.find("", plan_of(("0", 3), ("1", 3)))) == [0]
    reading[1].release()
    assert cache.give_way()
    assert rows.leased_bytes == 0


def test_an_entry_whose_items_all_lie_in_a_newer_one_is_dropped(rows: Ranges) -> None:
    cache = RowCache(rows, SIZE_BYTES)
    keep(cache, rows, plan_of(("a", 1)))
    newer = keep(cache, rows, plan_of(("a", 1), ("b", 1)))
    assert len(cache) == 1
    assert cache.find("", plan_of(("a", 1)))[0].offset == newer.offset
    assert cache.eviction_counts == {Eviction.SUPERSEDED: 1}
    assert rows.leased_bytes == 2 * MIB


def test_what_is_known_already_or_too_large_is_not_kept(rows: Ranges) -> None:
    cache = RowCache(rows, 4 * MIB)
    first = keep(cache, rows, plan_of(("a", 1)))
    keep(cache, rows, plan_of(("a", 1)))
    keep(cache, rows, plan_of(("large", 5)))
    assert cache.find("", plan_of(("a", 1)))[0].offset == first.offset
    assert rows.leased_bytes == MIB
    off = RowCache(rows, 0)
    keep(off, rows, plan_of(("b", 1)))
    assert (off.find("", plan_of(("b", 1))), off.miss_count, len(off)) == ({}, 0, 0)


def test_substitutions_are_told_again_by_the_place_of_the_item(rows: Ranges) -> None:
    cache = RowCache(rows, 4 * MIB)
    plan = plan_of(("a", 1), ("b", 1))
    lease = rows.lease(plan.size_bytes)
    assert lease is not None
    cache.add("", plan, lease, 1.0, (Substitution(1, 7, 6),))
    found = cache.find("", plan_of(("b", 1)))
    assert list(substitutions_of(found)) == [Substitution(0, 7, 6)]
