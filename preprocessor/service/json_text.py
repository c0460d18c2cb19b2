"""JSON of a request → Python values, from JSON text or from a `google.protobuf.Struct`.

JSON text keeps what a Struct loses: the order of keys, and whole numbers of any size. It is read with Python's `json`, so the
chat template renders the values that transformers would render. Refused in addition: numbers that are not finite, a key that
occurs twice in one object, lone surrogates, and deep nesting.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any, NoReturn, TypeVar

from google.protobuf import struct_pb2

from preprocessor.errors import InvalidRequest

MAX_DEPTH = 100
"""Nesting of objects and arrays: many times what any schema needs, and a tenth of Python's recursion limit."""

MAX_DIGITS = 4300
"""Digits of a whole number. Python's own limit (`sys.int_info.default_max_str_digits`): reading takes quadratic time."""

_KINDS: dict[type[Any], str] = {dict: "an object", list: "an array"}
_STRING = re.compile(r'"(?:[^"\\]++|\\.)*+"', re.DOTALL)
_BRACKET = re.compile(r"[\[\]{}]")
_SURROGATE_ESCAPE = re.compile(r"\\u[dD][89a-fA-F]")

Kind = TypeVar("Kind", dict[Any, Any], list[Any])


def value_count(text: str, enough: int) -> int:
    """An upper bound on the values in a JSON text, at every depth.

    Counts commas and opening brackets outside strings; an empty object or array counts as two. If the whole text, strings
    included, has no more than `enough` of them, that number is returned instead: it is cheaper.
    """

    def count(part: str) -> int:
        return part.count(",") + part.count("[") + part.count("{")

    return found if (found := count(text)) <= enough else count(_STRING.sub("", text))


def read_json(text: str, kind: type[Kind], name: str) -> Kind:
    """The value of a JSON text.

    Args:
        kind: The type that the value must have.
        name: The field's path, for messages and `PreprocessorError.field`.
    Raises:
        InvalidRequest: `INVALID_JSON`, `DUPLICATE_JSON_KEY`, `NOT_FINITE_NUMBER`, `JSON_TOO_DEEP`.
    """
    _check_depth(text, name)

    def no_number(literal: str) -> NoReturn:
        raise _not_finite(name, literal)

    def real(literal: str) -> float:
        if math.isinf(value := float(literal)):
            raise _not_finite(name, literal)
        return value

    def whole(literal: str) -> int:
        if len(literal) > MAX_DIGITS:
            raise InvalidRequest(
                f"{name}: a whole number of {len(literal)} digits; at most {MAX_DIGITS} are accepted",
                reason="INVALID_JSON",
                field=name,
            )
        return int(literal)

    def distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            seen: set[str] = set()
            twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
            raise InvalidRequest(
                f"{name}: the key {twice!r} stands twice in one object", reason="DUPLICATE_JSON_KEY", field=name
            )
        return found

    try:
        value = json.loads(
            text, parse_constant=no_number, parse_float=real, parse_int=whole, object_pairs_hook=distinct
        )
        if _SURROGATE_ESCAPE.search(text):
            json.dumps(value, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        raise InvalidRequest(
            f"{name} is not JSON: {error.msg} at character {error.pos}", reason="INVALID_JSON", field=name
        ) from error
    except UnicodeEncodeError as error:
        raise InvalidRequest(
            f"{name}: an escape names half a surrogate pair, which is no character", reason="INVALID_JSON", field=name
        ) from error
    if not isinstance(value, kind):
        raise InvalidRequest(f"{name} must be {_KINDS[kind]} in JSON", reason="INVALID_JSON", field=name)
    return value


def read_struct(message: struct_pb2.Struct, name: str) -> dict[str, Any]:
    """A Struct's fields. Every number is a float, as in the Struct itself.

    Raises:
        InvalidRequest: `NOT_FINITE_NUMBER`.
    """
    return {key: _read_value(value, name) for key, value in message.fields.items()}


def _read_value(value: struct_pb2.Value, name: str) -> Any:
    match value.WhichOneof("kind"):
        case "number_value":
            if not math.isfinite(value.number_value):
                raise _not_finite(name, str(value.number_value))
            return value.number_value
        case "string_value":
            return value.string_value
        case "bool_value":
            return value.bool_value
        case "struct_value":
            return read_struct(value.struct_value, name)
        case "list_value":
            return [_read_value(one, name) for one in value.list_value.values]
    return None


def _check_depth(text: str, name: str) -> None:
    depth = 0
    for bracket in _BRACKET.finditer(_STRING.sub("", text)):
        depth += 1 if bracket[0] in "[{" else -1
        if depth > MAX_DEPTH:
            raise InvalidRequest(
                f"{name}: objects and arrays nested more than {MAX_DEPTH} deep", reason="JSON_TOO_DEEP", field=name
            )


def _not_finite(name: str, literal: str) -> InvalidRequest:
    shown = literal if len(literal) <= 20 else f"{literal[:20]}…"
    return InvalidRequest(
        f"{name}: {shown} is not a finite number, and JSON has no other; leave it out",
        reason="NOT_FINITE_NUMBER",
        field=name,
    )
