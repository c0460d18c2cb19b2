"""How each kind of setting is written in each place, on settings made for it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import pytest

from preprocessor.config.declare import SettingError, group, options_of, setting
from preprocessor.config.values import format_bytes, parse_bytes, read_text, read_toml, write_text, write_toml


class Colour(StrEnum):
    RED = "red"
    GREEN = "green"


def even(text: str) -> int:
    if int(text) % 2:
        raise ValueError(f"{text} is odd")
    return int(text)


@dataclass(frozen=True)
class Inner:
    address: str = setting("", "where", name="--far", kind=str)
    depth: int = setting(1, "how deep")


@dataclass(frozen=True)
class Kinds:
    count: int = setting(1, "a number")
    wait_seconds: float = setting(1.5, "a time", "S", kind=float)
    size_bytes: int = setting(1 << 20, "a size", "SIZE", name="--size", kind=parse_bytes)
    is_on: bool = setting(False, "a switch", name="--on", kind=bool)
    name: str = setting("", "a text", kind=str)
    file: Path | None = setting(None, "a path", "FILE", kind=Path)
    level: str = setting("low", "a choice", kind=str, choices=("low", "middle", "high"))
    colour: Colour = setting(Colour.RED, "an enumeration", "COLOUR", kind=Colour)
    hosts: tuple[str, ...] = setting((), "a list", "HOST", kind=str)
    sizes: tuple[int, ...] = setting((1,), "a list of sizes", "SIZE", kind=parse_bytes)
    peers: str = setting("", "a list that is text", "HOST", kind=str, is_joined=True)
    pairs: int = setting(2, "an even number", "EVEN", kind=even)
    password: str = setting("", "a secret", kind=str, is_secret=True)
    pin: int = setting(0, "a secret number", is_secret=True)
    far: Inner = group(Inner, "far away", "far-")


OPTIONS = {option.flag: option for option in options_of(Kinds)}


@pytest.mark.parametrize(
    ("flag", "variable", "key"),
    [
        ("--count", "PREPROCESSOR_COUNT", "count"),
        ("--wait-seconds", "PREPROCESSOR_WAIT_SECONDS", "wait_seconds"),
        ("--size", "PREPROCESSOR_SIZE", "size"),
        ("--far", "PREPROCESSOR_FAR", "far.address"),
        ("--far-depth", "PREPROCESSOR_FAR_DEPTH", "far.depth"),
    ],
)
def test_a_setting_has_one_name_in_three_spellings(flag: str, variable: str, key: str) -> None:
    assert (OPTIONS[flag].variable, OPTIONS[flag].key) == (variable, key)


@pytest.mark.parametrize(
    ("flag", "text", "toml", "value"),
    [
        ("--count", "7", 7, 7),
        ("--wait-seconds", "2.5", 2.5, 2.5),
        ("--wait-seconds", "3", 3, 3.0),
        ("--size", "4GiB", "4GiB", 4 << 30),
        ("--size", "1000", 1000, 1000),
        ("--on", "true", True, True),
        ("--on", "No", False, False),
        ("--name", "a,b", "a,b", "a,b"),
        ("--name", "", "", ""),
        ("--file", "/a b/c", "/a b/c", Path("/a b/c")),
        ("--file", "", "", None),
        ("--level", "high", "high", "high"),
        ("--colour", "green", "green", Colour.GREEN),
        ("--hosts", "a, b,,c", ["a", "b", "c"], ("a", "b", "c")),
        ("--hosts", "", [], ()),
        ("--sizes", "1KiB,5", ["1KiB", 5], (1024, 5)),
        ("--peers", "a,b", ["a", "b"], "a,b"),
        ("--peers", "a,b", "a,b", "a,b"),
        ("--pairs", "4", 4, 4),
        ("--password", "open", "open", "open"),
    ],
)
def test_text_and_toml_stand_for_a_value(flag: str, text: str, toml: Any, value: Any) -> None:
    assert read_text(OPTIONS[flag], text) == value
    assert read_toml(OPTIONS[flag], toml) == value
    assert type(read_toml(OPTIONS[flag], toml)) is type(read_text(OPTIONS[flag], text)) is type(value)


@pytest.mark.parametrize(
    ("flag", "text", "accepted"),
    [
        ("--count", "two", "a whole number"),
        ("--count", "1.5", "a whole number"),
        ("--wait-seconds", "soon", "a number"),
        ("--size", "4 gallons", "a size such as 4GiB, 512MiB or a number of bytes"),
        ("--on", "maybe", "true or false"),
        ("--level", "top", "low, middle or high"),
        ("--colour", "blue", "red or green"),
        ("--sizes", "1KiB,big", "a size such as 4GiB, 512MiB or a number of bytes"),
        ("--pairs", "3", "EVEN (3 is odd)"),
    ],
)
def test_text_that_is_wrong_is_refused_with_what_would_be_accepted(flag: str, text: str, accepted: str) -> None:
    with pytest.raises(SettingError) as refused:
        read_text(OPTIONS[flag], text)
    assert (refused.value.option, refused.value.value, refused.value.accepted) == (flag, text.split(",")[-1], accepted)


@pytest.mark.parametrize(
    ("flag", "toml"),
    [
        ("--count", "7"),
        ("--count", True),
        ("--count", 7.0),
        ("--wait-seconds", "3"),
        ("--size", True),
        ("--size", -1),
        ("--size", 1.5),
        ("--on", "true"),
        ("--on", 1),
        ("--name", 7),
        ("--file", 7),
        ("--level", 1),
        ("--hosts", "a,b"),
        ("--hosts", ["a", 7]),
        ("--peers", ["a", 7]),
        ("--count", [7]),
        ("--name", {"a": 1}),
    ],
)
def test_toml_of_another_type_is_refused(flag: str, toml: Any) -> None:
    with pytest.raises(SettingError, match=flag):
        read_toml(OPTIONS[flag], toml)


def test_a_list_in_toml_is_an_array_and_says_of_what() -> None:
    with pytest.raises(SettingError, match="give an array, each element text"):
        read_toml(OPTIONS["--hosts"], "a,b")


@pytest.mark.parametrize(
    ("flag", "value", "text", "toml"),
    [
        ("--count", 7, "7", "7"),
        ("--wait-seconds", 20.0, "20", "20"),
        ("--wait-seconds", 1e-7, "1e-07", "1e-07"),
        ("--wait-seconds", 1234567.25, "1234567.25", "1234567.25"),
        ("--size", 3 << 29, "1536MiB", '"1536MiB"'),
        ("--size", 1000, "1000", "1000"),
        ("--size", 0, "0", "0"),
        ("--on", True, "true", "true"),
        ("--name", 'say "ü"\x7f\n', 'say "ü"\x7f\n', '"say \\"ü\\"\\u007f\\n"'),
        ("--name", "7", "7", '"7"'),
        ("--file", Path("/a"), "/a", '"/a"'),
        ("--colour", Colour.GREEN, "green", '"green"'),
        ("--hosts", ("a", "b"), "a,b", '["a", "b"]'),
        ("--sizes", (1024, 5), "1KiB,5", '["1KiB", 5]'),
    ],
)
def test_a_value_is_written_so_that_reading_gives_it_back(flag: str, value: Any, text: str, toml: str) -> None:
    import tomllib

    assert write_text(OPTIONS[flag], value) == text
    assert write_toml(OPTIONS[flag], value) == toml
    assert read_text(OPTIONS[flag], text) == read_toml(OPTIONS[flag], tomllib.loads(f"x = {toml}")["x"]) == value


def test_a_secret_is_not_written() -> None:
    assert write_text(OPTIONS["--password"], "open") == "(hidden)"
    with pytest.raises(SettingError) as refused:
        read_text(OPTIONS["--pin"], "12a4")
    assert "12a4" not in str(refused.value)


def test_a_field_that_nobody_could_set_is_refused_when_options_are_made() -> None:
    @dataclass(frozen=True)
    class Forgotten:
        count: int = 1

    with pytest.raises(TypeError, match=r"Forgotten\.count: declare it"):
        options_of(Forgotten)


@pytest.mark.parametrize("size_bytes", [0, 1, 1023, 1024, 1536, 1 << 30, (1 << 30) + 1, 3 << 40])
def test_a_size_is_written_so_that_reading_gives_it_back(size_bytes: int) -> None:
    assert parse_bytes(format_bytes(size_bytes)) == size_bytes
