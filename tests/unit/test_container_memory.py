"""The service fits its container at every budget: the sum of everything that it may hold at one time."""

from __future__ import annotations

import pytest

from preprocessor.config import ServeSettings, WireSettings, bytes_beside_budget, retained_bytes
from preprocessor.config.memory import (
    AT_REST_BYTES,
    DISCARDED_BYTES,
    FRONT_AT_REST_BYTES,
    RESPONSE_BYTES,
    SINGLE_MESSAGE_BYTES,
    UPLOAD_BYTES,
    WINDOW_BYTES,
)
from preprocessor.service import auth_interceptor, refused_uploads, response_buffer

MIB = 1 << 20
GIB = 1 << 30
HTTP2_WINDOW_BYTES = 64 << 10
BUDGETS_GIB = (0.25, 0.5, 1, 2, 2.5, 3, 3.5, 4, 4.5, 6, 8, 16, 32, 64)


@pytest.mark.parametrize("budget_gib", BUDGETS_GIB)
def test_all_parts_fit_beside_the_budget(budget_gib: float) -> None:
    budget_bytes = int(budget_gib * GIB)
    parts_bytes = (
        AT_REST_BYTES,
        UPLOAD_BYTES,
        SINGLE_MESSAGE_BYTES,
        DISCARDED_BYTES,
        RESPONSE_BYTES,
        WINDOW_BYTES,
        retained_bytes(budget_bytes),
    )
    assert sum(parts_bytes) <= bytes_beside_budget(budget_bytes)


@pytest.mark.parametrize("budget_gib", BUDGETS_GIB)
def test_workers_may_retain_a_sixteenth_of_the_budget_at_least(budget_gib: float) -> None:
    budget_bytes = int(budget_gib * GIB)
    assert budget_bytes / 16 <= retained_bytes(budget_bytes) <= budget_bytes / 8


def test_up_to_4_gib_the_container_needs_1_gib_beside_the_budget() -> None:
    assert {bytes_beside_budget(int(gib * GIB)) for gib in BUDGETS_GIB if gib <= 4} == {GIB}


def test_the_parts_are_those_of_the_default_limits() -> None:
    wire = WireSettings()
    assert wire.max_upload_count * wire.max_message_bytes == UPLOAD_BYTES
    assert auth_interceptor.MAX_SINGLE_MESSAGE_COUNT * wire.max_message_bytes == SINGLE_MESSAGE_BYTES
    assert refused_uploads.MAX_CONCURRENT * wire.max_message_bytes == DISCARDED_BYTES
    assert 2 * response_buffer.MAX_BYTES == RESPONSE_BYTES
    assert wire.max_open_calls * HTTP2_WINDOW_BYTES == WINDOW_BYTES


def test_larger_messages_and_more_uploads_need_more() -> None:
    assert ServeSettings(front_count=1).more_bytes == 0
    settings = ServeSettings(front_count=1, wire=WireSettings(max_upload_count=32))
    assert settings.more_bytes == 256 * MIB


def test_each_front_needs_memory_and_messages_are_in_one_of_them_too() -> None:
    both, four = (ServeSettings(front_count=count).more_bytes for count in (2, 4))
    assert four - both == 2 * (FRONT_AT_REST_BYTES + RESPONSE_BYTES)
    assert both - (four - both) == UPLOAD_BYTES + SINGLE_MESSAGE_BYTES + DISCARDED_BYTES
    wide = ServeSettings(front_count=2, wire=WireSettings(max_upload_count=32))
    assert wide.more_bytes - both == 512 * MIB
    assert ServeSettings(front_count=1).more_bytes == 0


def test_openai_s_port_needs_memory_for_its_connections() -> None:
    assert ServeSettings(front_count=1, openai_address="127.0.0.1:8000").more_bytes == 160 * MIB
    fewer = ServeSettings(front_count=1, openai_address="127.0.0.1:8000", wire=WireSettings(max_connections=16))
    assert fewer.more_bytes == 10 * MIB
