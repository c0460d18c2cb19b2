"""How the value of a setting is written: as text, in a TOML file, and to people. What is wrong is a SettingError."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from enum import Enum
from pathlib import Path
from typing import Any

from preprocessor.config.declare import Option, SettingError

_SIZE = re.compile(r"(\d+(?:\.\d+)?) *([KMGT]?i?B?)", re.IGNORECASE)
_POWERS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}
_TRUTHS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}
_COLOURS = {"white": "#ffffff", "black": "#000000"}
_COLOUR = re.compile(r"#[0-9a-f]{6}")
NO_BACKGROUND = "none"
HIDDEN = "(hidden)"


def parse_bytes(text: str) -> int:
    """Bytes of "4GiB", "512 MiB", "1.5G" or "1000000"; a unit is a power of 1024, or of 1000 where it ends in a bare B.

    Raises:
        ValueError: It is no size.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not a size; write 4GiB, 512MiB or a number of bytes")
    number, unit = match.groups()
    base = 1000 if re.fullmatch(r"[KMGT]B", unit, re.IGNORECASE) else 1024
    return int(float(number) * base ** _POWERS[unit[:1].upper() if unit.upper() != "B" else ""])


def parse_background(text: str) -> str:
    """A colour as "#rrggbb", of such or "white" or "black", in either case; "none" stays as it is.

    Raises:
        ValueError: It is none of these.
    """
    lowered = text.strip().lower()
    colour = _COLOURS.get(lowered, lowered)
    if colour != NO_BACKGROUND and _COLOUR.fullmatch(colour) is None:
        raise ValueError(f"{text!r} is no background; write white, black, #rrggbb or none")
    return colour


def format_bytes(size_bytes: int) -> str:
    """The shortest text of which `parse_bytes` makes the same number: "512MiB", or "1000000" where no unit fits."""
    for power, unit in ((4, "TiB"), (3, "GiB"), (2, "MiB"), (1, "KiB")):
        if size_bytes and size_bytes % 1024**power == 0:
            return f"{size_bytes // 1024**power}{unit}"
    return str(size_bytes)


# Of each kind: the types that it may have in a TOML file, and what is accepted, in words.
_KINDS: Mapping[Callable[[str], Any], tuple[tuple[type, ...], str]] = {
    int: ((int,), "a whole number"),
    float: ((int, float), "a number"),
    bool: ((bool,), "true or false"),
    str: ((str,), "text"),
    Path: ((str,), "a path"),
    parse_bytes: ((int, str), "a size such as 4GiB, 512MiB or a number of bytes"),
}


def read_text(option: Option, text: str) -> Any:
    """The value that text stands for, on the command line or in the environment.

    Raises:
        SettingError: It stands for none.
    """
    if option.is_list:
        return tuple(_read_one(option, part.strip()) for part in text.split(",") if part.strip())
    if not text and option.default is None:
        return None
    return _read_one(option, text)


def read_toml(option: Option, value: Any) -> Any:
    """The value that a TOML value stands for. Numbers and truths must be such, not text.

    Raises:
        SettingError: It stands for none.
    """
    if option.is_list:
        if not isinstance(value, list):
            raise SettingError(option.flag, _shown(option, value), f"an array, each element {accepted(option)}")
        return tuple(_read_toml_one(option, element) for element in value)
    if option.is_joined and isinstance(value, list):
        return ",".join(_read_toml_one(option, element) for element in value)
    return _read_toml_one(option, value)


def write_text(option: Option, value: Any) -> str:
    """The text for which `read_text` gives that value; empty for None."""
    if option.is_secret and value:
        return HIDDEN
    if isinstance(value, tuple):
        return ",".join(write_text(option, element) for element in value)
    if value is None or isinstance(value, bool):
        return "" if value is None else str(value).lower()
    if isinstance(value, Enum):
        return str(value.value)
    if option.kind is parse_bytes:
        return format_bytes(value)
    return f"{value:g}" if isinstance(value, float) and float(f"{value:g}") == value else str(value)


def write_toml(option: Option, value: Any) -> str:
    """The TOML value for which `read_toml` gives that value, which is not None."""
    if isinstance(value, tuple):
        return f"[{', '.join(write_toml(option, element) for element in value)}]"
    text = write_text(option, value)
    is_bare = isinstance(value, bool | int | float) and not isinstance(value, Enum)
    # JSON's strings are TOML's, but for DEL. A size with a unit is text.
    is_bare &= not (option.kind is parse_bytes and not text.isdigit())
    return text if is_bare else json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def accepted(option: Option) -> str:
    """What may be written, in words."""
    texts = option.choices or [str(member.value) for member in _members(option)]
    if texts:
        return f"{', '.join(texts[:-1])} or {texts[-1]}" if len(texts) > 1 else texts[0]
    return _KINDS[option.kind][1] if option.kind in _KINDS else option.metavar


def _read_one(option: Option, text: str) -> Any:
    if option.choices and text not in option.choices:
        raise SettingError(option.flag, text, accepted(option))
    try:
        return _TRUTHS[text.lower()] if option.kind is bool else option.kind(text)
    except (ValueError, KeyError) as error:
        # A parser of the setting's own says what is wrong; of the others `accepted` says enough.
        says_more = option.kind not in _KINDS and not _members(option) and not option.is_secret
        why = f" ({error})" if says_more else ""
        raise SettingError(option.flag, _shown(option, text), accepted(option) + why) from error


def _read_toml_one(option: Option, value: Any) -> Any:
    types: tuple[type, ...] = _KINDS[option.kind][0] if option.kind in _KINDS else (str, int, float)
    if type(value) not in types:  # not isinstance: true is no number
        raise SettingError(option.flag, _shown(option, value), accepted(option))
    if not value and isinstance(value, str) and option.default is None:
        return None
    return _read_one(option, str(value))


def _members(option: Option) -> list[Any]:
    return list(option.kind) if isinstance(option.kind, type) and issubclass(option.kind, Enum) else []


def _shown(option: Option, value: Any) -> Any:
    return HIDDEN if option.is_secret else value
