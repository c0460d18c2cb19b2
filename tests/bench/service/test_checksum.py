"""The benchmark and the storms rest on this: an answer counts as right only if every byte of it is."""

from __future__ import annotations

import numpy as np
import pytest

from preprocessor.v1 import preprocessor_pb2 as pb
from preprocessor.wire.tensors import describe_tensor, write_rows
from tests.bench.service import checksum

IDS = np.arange(7, dtype=np.int32)
PIXELS = np.arange(60, dtype=np.uint8).reshape(10, 6)


def answer(*runs: range, pixels: np.ndarray = PIXELS) -> list[pb.PrepareResponse]:
    """Header, runs of rows, report."""
    header = pb.Header(
        request_id="differs each time",
        tensors=[
            describe_tensor("input_ids", IDS.dtype, IDS.shape, IDS),
            describe_tensor("pixel_patches", pixels.dtype, pixels.shape),
        ],
    )
    rows = (message for run in runs for message in write_rows(1, pixels, run.start, len(run)))
    return [
        pb.PrepareResponse(header=header),
        *map(pb.PrepareResponse.FromString, rows),
        pb.PrepareResponse(report=pb.Report()),
    ]


def checksum_of(responses: list[pb.PrepareResponse]) -> str:
    received = checksum.Checksum()
    for response in responses:
        received.add(response.SerializeToString())
    return received.result()


@pytest.mark.parametrize("runs", [(range(10),), (range(4), range(4, 5), range(5, 10))])
def test_it_is_that_of_the_tensors_in_whatever_runs_they_come(runs: tuple[range, ...]) -> None:
    assert checksum_of(answer(*runs)) == checksum.of_tensors({"pixel_patches": PIXELS, "input_ids": IDS})


def test_one_other_byte_makes_another() -> None:
    other = PIXELS.copy()
    other[9, 5] ^= 1
    assert checksum_of(answer(range(10), pixels=other)) != checksum_of(answer(range(10)))


def test_the_same_bytes_in_another_shape_make_another() -> None:
    assert checksum.of_tensors({"a": PIXELS}) != checksum.of_tensors({"a": PIXELS.reshape(6, 10)})


@pytest.mark.parametrize(
    ("responses", "why"),
    [
        (answer(range(4), range(5, 10)), "row 5 where 4 was due"),
        (answer(range(4), range(10)), "row 0 where 4 was due"),
        (answer(range(9)), "9 rows of 10"),
        (answer(range(10))[:-1], "without a report"),
    ],
)
def test_an_answer_that_is_not_whole_has_none(responses: list[pb.PrepareResponse], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        checksum_of(responses)
