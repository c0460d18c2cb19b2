"""The mutators: good files are taken apart rightly, the same seed gives the same case, and most cases are no copies."""

from __future__ import annotations

import random

import pytest

from preprocessor.v1 import preprocessor_pb2 as pb
from tests.fuzz import messages
from tests.fuzz.cases import make_case
from tests.fuzz.mutators import MUTATIONS, mutate, with_right_check_sums
from tests.fuzz.seeds import SEEDS, file_of
from tests.fuzz.structure import PARSERS, leaves

ONE_OF_EACH = {seed.structure: name for name, seed in SEEDS.items()}


@pytest.mark.parametrize("structure", PARSERS)
def test_the_elements_of_a_good_file_lie_within_it_and_within_their_parents(structure: str) -> None:
    data = file_of(ONE_OF_EACH[structure])
    elements = PARSERS[structure](data)
    assert elements
    for element in elements:
        assert 0 <= element.start <= element.body <= element.end <= len(data)
        for parent in element.ancestors:
            assert elements[parent].start <= element.start
            assert element.end <= elements[parent].end
    assert sum(leaf.end - leaf.start for leaf in leaves(elements)) > 100


@pytest.mark.parametrize("structure", ["boxes", "ebml", "riff", "png", "flv", "ivf", "flac", "iff"])
def test_a_length_says_where_its_element_ends_and_writing_it_again_changes_nothing(structure: str) -> None:
    data = file_of(ONE_OF_EACH[structure])
    sized = [element for element in PARSERS[structure](data) if element.size is not None]
    assert len(sized) > 2
    again, kept = bytearray(data), 0
    for element in sized:
        assert element.size is not None
        value = int.from_bytes(data[element.size.offset : element.size.offset + element.size.width], element.size.order)
        if not element.size.is_vint and element.size.counts_from + value in (
            element.end,
            element.end - 4,
            element.end - 1,
        ):
            kept += 1
            element.size.write(again, value)
    assert kept > 2 or structure == "ebml"
    assert bytes(again) == data


def test_good_check_sums_are_found_to_be_right() -> None:
    for name in ("apng", "ogg opus", "ogg flac"):
        assert with_right_check_sums(file_of(name), SEEDS[name].structure) == file_of(name)


def test_the_same_number_gives_the_same_case_and_another_gives_another() -> None:
    cases = [make_case(5, number) for number in range(60)]
    assert cases == [make_case(5, number) for number in range(60)]
    assert len({case.sent for case in cases}) > 55
    assert {"messages"} < {case.kind for case in cases}


@pytest.mark.parametrize("name", MUTATIONS)
def test_each_mutation_changes_files_of_every_structure_and_never_fails(name: str) -> None:
    for turn, (structure, seed) in enumerate(ONE_OF_EACH.items()):
        source, data = random.Random(turn), file_of(seed)
        results = set()
        for _ in range(12):
            spoiled = bytearray(data)
            assert MUTATIONS[name](spoiled, PARSERS[structure](data), source)
            results.add(bytes(spoiled))
        assert results - {data}, structure


def test_what_is_left_of_a_file_is_mutated_on() -> None:
    for structure in PARSERS:
        for number in range(20):
            mutate(b"", structure, random.Random(number))
            mutate(b"\xff", structure, random.Random(number))


MEDIUM = pb.Media(
    key="it",
    sampling=pb.Sampling(),
    frames=pb.FrameList(times_seconds=pb.FrameTimes(values=[1])),
    inline_frames=pb.InlineFrames(pictures=[b"x"]),
)


def test_lists_of_frames_are_among_the_cases() -> None:
    told = [make_case(5, number).told for number in range(400)]
    assert any("a frame of a list" in one for one in told)


def test_fields_of_every_kind_are_spoiled() -> None:
    told = ""
    for number in range(600):
        spec = pb.GenerateSpec(prompt=pb.PrepareSpec(text="x", media=[MEDIUM]))
        told += messages.spoil_spec(spec, random.Random(number))
        assert pb.GenerateSpec.FromString(spec.SerializeToString()).SerializeToString() == spec.SerializeToString()
    for field in (
        "Media.url",
        "Sampling.indices",
        "Sampling.fps",
        "FrameList.sizes_bytes",
        "FrameList.times_seconds",
        "FrameTimes.values",
        "FrameList.duration_seconds",
        "InlineFrames.pictures",
        "PrepareSpec.token_ids",
        "GenerationParameters.seed",
    ):
        assert field in told
