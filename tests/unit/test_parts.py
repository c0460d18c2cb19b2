"""`make test` leaves no test out: each is in a part, and each part has its process."""

from __future__ import annotations

import re

from tests.conftest import PARTS, TESTS, part_of


def test_make_test_starts_a_process_for_each_part_and_make_test_fronts_for_those_of_the_service() -> None:
    everything, service = re.findall(r"\$\(call in_parts,([a-z ]+)\)", (TESTS.parent / "Makefile").read_text())
    files = sorted(TESTS.rglob("test_*.py"))
    assert set(everything.split()) == PARTS.keys() == {part_of(file) for file in files}
    assert set(service.split()) == {part_of(file) for file in files if (TESTS / "service") in file.parents}
