"""The proto keeps the rules of its kind: buf's, and those of Google's AIPs (https://google.aip.dev) that buf does not check.

Chosen of the AIPs: 140 (names: no `is_`), 141 (a number's name ends with its unit, or with _count), 142 with seconds as
doubles in place of Duration, 180 and 191 (package and file), 193 (errors, in tests/service/test_fields_at_fault.py).
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import grpc_tools
import pytest
from google.protobuf import json_format
from google.protobuf.descriptor_pb2 import DescriptorProto, FieldDescriptorProto, FileDescriptorProto, FileDescriptorSet
from grpc_tools import protoc

from preprocessor.v1 import preprocessor_pb2 as pb
from tests.deploy.tools import tool
from tests.reasons import documented
from tests.waiting import PATIENCE_SECONDS

ROOT = Path(__file__).parents[2]
PROTOS = ROOT / "protos"
FILE = "preprocessor/v1/preprocessor.proto"

UNITS = ("px", "bytes", "count", "seconds", "ms", "hz", "fps", "degrees", "index", "indices", "ids")
# Numbers without a unit, or with a name that the field knows them by.
PLAIN = {
    *("GenerationParameters.temperature", "GenerationParameters.top_p", "GenerationParameters.seed"),
    *(
        "GenerationParameters.max_tokens",
        "GenerationParameters.top_k",
    ),  # as in OpenAI's API and in vLLM, like the following
    *(
        "GenerationParameters.min_p",
        "GenerationParameters.logprobs",
        "TokenLogprob.logprob",
        "TokenAlternative.logprob",
    ),
    *(f"GenerationParameters.{kind}_penalty" for kind in ("presence", "frequency", "repetition")),
    "TokenAlternative.token_id",
    *("PatchLayout.grid_t", "PatchLayout.grid_h", "PatchLayout.grid_w"),  # the tensor grid_thw
    *("PixelSettings.merge_size", "PixelSettings.temporal_patch_size"),  # settings of these names in transformers
    *("PixelSettings.mean", "PixelSettings.std"),
    *("Tensor.shape", "TensorRows.first_row", "RowsReady.first_row"),
    *("FrameIndices.values", "FrameTimes.values"),  # the field that holds them says what they are
}
NUMBERS = {
    FieldDescriptorProto.TYPE_DOUBLE,
    FieldDescriptorProto.TYPE_FLOAT,
    FieldDescriptorProto.TYPE_INT32,
    FieldDescriptorProto.TYPE_INT64,
    FieldDescriptorProto.TYPE_UINT32,
    FieldDescriptorProto.TYPE_UINT64,
}
# What comments put between backticks and is no element of this file.
ELSEWHERE = {
    *("input_ids", "pixel_patches", "pixel_values", "pixel_mean", "pixel_std", "mm_token_type_ids", "item_modality"),
    *("min_pixels", "max_pixels", "tools", "processor_kwargs", "git.example"),
}


@dataclass(frozen=True, slots=True)
class Field:
    """A field with the name of its message before its own."""

    name: str
    proto: FieldDescriptorProto

    @property
    def is_in_oneof(self) -> bool:
        return self.proto.HasField("oneof_index") and not self.proto.proto3_optional


@cache
def file() -> FileDescriptorProto:
    """The file as the compiler reads it, comments included."""
    builtin = Path(grpc_tools.__file__).parent / "_proto"
    with TemporaryDirectory() as folder:
        output = Path(folder) / "protos.binpb"
        command = [
            "protoc",
            f"-I{PROTOS}",
            f"-I{builtin}",
            "--include_source_info",
            f"--descriptor_set_out={output}",
            FILE,
        ]
        assert protoc.main(command) == 0
        (found,) = FileDescriptorSet.FromString(output.read_bytes()).file
    return found


def messages() -> Iterator[DescriptorProto]:
    """Those that are written in the file: a map's entry is made by the compiler."""
    yield from file().message_type
    assert all(one.options.map_entry for message in file().message_type for one in message.nested_type)


def fields() -> list[Field]:
    return [Field(f"{message.name}.{field.name}", field) for message in messages() for field in message.field]


def comments() -> list[str]:
    """Every comment before an element, as one line."""
    found = [location.leading_comments for location in file().source_code_info.location if location.leading_comments]
    found += [text for location in file().source_code_info.location for text in location.leading_detached_comments]
    return [" ".join(text.split()) for text in found if not text.strip().startswith("--")]


def test_buf_has_nothing_to_say() -> None:
    """STANDARD and COMMENTS: names, prefixes, suffixes, zero values, types of requests, and a comment on every element."""
    for command in (["lint", str(PROTOS)], ["format", "--diff", "--exit-code", str(PROTOS)]):
        done = subprocess.run([tool("buf"), *command], capture_output=True, text=True, timeout=PATIENCE_SECONDS)
        assert (done.stdout + done.stderr, done.returncode) == ("", 0)


def bare(described: FileDescriptorProto) -> FileDescriptorProto:
    """Without what each compiler adds in its own way: comments, places and names in JSON."""
    found = FileDescriptorProto()
    found.CopyFrom(described)
    found.ClearField("source_code_info")
    for message in found.message_type:
        for each in (message, *message.nested_type):
            for field in each.field:
                field.ClearField("json_name")
    return found


def test_the_generated_code_is_that_of_the_file() -> None:
    generated = FileDescriptorProto()
    pb.DESCRIPTOR.CopyToProto(generated)
    assert bare(generated) == bare(file()), "run make proto"


def test_envoy_s_descriptor_is_that_of_the_file() -> None:
    shipped = FileDescriptorSet.FromString((ROOT / "deploy/envoy/preprocessor.binpb").read_bytes())
    (found,) = (one for one in shipped.file if one.name == FILE)
    assert bare(found) == bare(file()), "run make proto"


def test_a_number_s_name_ends_with_its_unit() -> None:
    numbers = [field.name for field in fields() if field.proto.type in NUMBERS]
    bare = {name for name in numbers if re.split(r"[._]", name)[-1] not in UNITS}
    assert bare == PLAIN


def test_a_bool_s_name_has_no_verb_before_it() -> None:
    bools = [field for field in fields() if field.proto.type == FieldDescriptorProto.TYPE_BOOL]
    assert not [field.name for field in bools if re.match(r"(is|has|was|are)_", field.proto.name)]


def test_what_is_chosen_by_a_oneof_can_be_seen_to_be_chosen() -> None:
    """A bool there could be false, which would choose and not choose it; an empty message is used in its place."""
    chosen = [field for field in fields() if field.is_in_oneof]
    assert chosen
    assert not [field.name for field in chosen if field.proto.type == FieldDescriptorProto.TYPE_BOOL]


def test_json_that_chooses_frames_in_two_ways_is_refused() -> None:
    """Of a message's bytes the last counts, as protobuf has it; JSON names both, and its reader refuses them."""
    with pytest.raises(json_format.ParseError, match='"choice" oneof'):
        json_format.Parse('{"fps": 1, "every_frame": {}}', pb.Sampling())


def test_field_numbers_have_no_gaps_but_reserved_ones() -> None:
    """So that no number is used again. A later member of a oneof stands among the others with a higher number."""
    for message in messages():
        reserved = {number for span in message.reserved_range for number in range(span.start, span.end)}
        numbers = [field.number for field in message.field]
        assert set(numbers) | reserved == set(range(1, len(numbers) + len(reserved) + 1)), message.name


def test_values_of_an_enum_are_numbered_in_their_order() -> None:
    for enum in file().enum_type:
        assert [value.number for value in enum.value] == list(range(len(enum.value))), enum.name


@pytest.mark.parametrize("method", file().service[0].method, ids=lambda method: method.name)
def test_a_request_and_a_response_bear_the_method_s_name(method: object) -> None:
    name, given, answered = (getattr(method, part) for part in ("name", "input_type", "output_type"))
    assert given == f".preprocessor.v1.{name}Request"
    resource = name.removeprefix("Get")
    assert answered == f".preprocessor.v1.{resource if resource != name else f'{name}Response'}"


def test_comments_are_sentences() -> None:
    assert len(comments()) > 150
    for comment in comments():
        assert re.match(r"[A-Z0-9`]", comment), comment
        assert comment.endswith((".", ":")), comment


def test_what_a_comment_names_is_there() -> None:
    known = {field.name for field in fields()} | {field.proto.name for field in fields()}
    known |= {message.name for message in messages()} | {enum.name for enum in file().enum_type}
    for comment in comments():
        for name in re.findall(r"`([A-Za-z_][\w.]*)`", comment):
            assert name in known | ELSEWHERE, comment


def test_reasons_that_comments_name_are_reasons() -> None:
    reasons = {one.reason for one in documented()}
    values = {value.name for enum in file().enum_type for value in enum.value}
    codes = {"NOT_FOUND"}
    for comment in comments():
        for name in re.findall(r"\b[A-Z]+(?:_[A-Z]+)+\b", comment):
            assert name in reasons | values | codes, comment
