"""The fields of a JSON object, taken one by one: what is left at the end is refused, not ignored."""

from __future__ import annotations

from typing import Any, TypeVar

from preprocessor.errors import InvalidRequest

Value = TypeVar("Value")

_NAMES = {
    str: "a text",
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    list: "an array",
    dict: "an object",
}


class Fields:
    """An object's fields; null is the same as absent.

    Args:
        value: What should be the object.
        path: Where it stands in the request; empty for the request itself.
        reason: Of the errors.
    Raises:
        InvalidRequest: It is no object.
    """

    def __init__(self, value: Any, path: str = "", reason: str = "INVALID_GENERATION_PARAMETERS") -> None:
        self._reason = reason
        self.path = path
        if not isinstance(value, dict):
            raise self.error("", "must be an object")
        self._left = {name: field for name, field in value.items() if field is not None}

    def take(self, name: str, kind: type[Value]) -> Value | None:
        """A field's value; None if it is absent.

        Raises:
            InvalidRequest: It is of another type, or no number that a float can hold.
        """
        value = self._left.pop(name, None)
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            try:
                value = float(value)
            except OverflowError as error:
                raise self.error(name, "is out of range") from error
        if value is None or (isinstance(value, kind) and (kind is bool or not isinstance(value, bool))):
            return value
        raise self.error(name, f"must be {_NAMES[kind]}")

    def take_int(self, name: str, bits: int = 32) -> int | None:
        """A whole number that fits into so many bits with a sign; None if it is absent."""
        value = self.take(name, int)
        if value is not None and not -(1 << bits - 1) <= value < 1 << bits - 1:
            raise self.error(name, f"is {value}, which is out of range")
        return value

    def take_any(self, name: str) -> Any:
        """A field's value of any type; None if it is absent."""
        return self._left.pop(name, None)

    def take_object(self, name: str) -> Fields | None:
        """The fields of an object; None if it is absent."""
        value = self._left.pop(name, None)
        return None if value is None else Fields(value, self.path_of(name), self._reason)

    def ignore(self, *names: str) -> None:
        """Drop fields without an effect on the answer."""
        for name in names:
            self._left.pop(name, None)

    def rest(self) -> dict[str, Any]:
        """All fields that are left."""
        left, self._left = self._left, {}
        return left

    def end(self) -> None:
        """Raises: InvalidRequest: `UNSUPPORTED_PARAMETER`: a field is left."""
        for name in self._left:
            path = self.path_of(name)
            raise InvalidRequest(
                f"{path} is not supported here; leave it out", reason="UNSUPPORTED_PARAMETER", field=path
            )

    def path_of(self, name: str) -> str:
        return f"{self.path}.{name}" if self.path and name else self.path or name

    def error(self, name: str, problem: str) -> InvalidRequest:
        """That a field, or with an empty name the object, is not as it should be."""
        path = self.path_of(name)
        return InvalidRequest(f"{path} {problem}", reason=self._reason, field=path)
