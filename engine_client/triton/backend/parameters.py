"""Reads a model's parameters from `config.pbtxt`, where each is text."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

Value = TypeVar("Value")


class InvalidSettings(ValueError):
    """A parameter of `config.pbtxt` cannot be used; the text names it, its value, and what could be."""


class ParameterReader:
    """Reads parameters by name.

    Args:
        parameters: By name, as text.
    """

    def __init__(self, parameters: Mapping[str, str]) -> None:
        self._parameters = parameters

    def text(self, name: str) -> str:
        """The parameter as it is written.

        Raises:
            InvalidSettings: it is missing.
        """
        try:
            return self._parameters[name]
        except KeyError as error:
            raise InvalidSettings(f"config.pbtxt lacks the parameter {name}") from error

    def value(self, name: str, parse: Callable[[str], Value], holds: Callable[[Value], bool], rule: str) -> Value:
        """The parameter, parsed.

        Args:
            parse: Raises ValueError for text that is no value.
            holds: Whether a value may be used.
            rule: What is accepted, for the message.
        Raises:
            InvalidSettings: it is missing, or `parse` or `holds` refuses it.
        """
        text = self.text(name)
        try:
            value = parse(text)
        except ValueError as error:
            raise InvalidSettings(f"{name} is {text!r}; it must be {rule}") from error
        if not holds(value):
            raise InvalidSettings(f"{name} is {text!r}; it must be {rule}")
        return value

    def flag(self, name: str) -> bool:
        """The parameter, `true` or `false`.

        Raises:
            InvalidSettings: it is missing, or neither.
        """
        return self.value(name, str, ("true", "false").__contains__, "true or false") == "true"

    def arguments(self, name: str, forbidden: tuple[str, ...], of: str) -> Mapping[str, Any]:
        """The parameter as keyword arguments: a JSON object, empty text for none.

        Args:
            forbidden: Arguments that other parameters set.
            of: Whose arguments, for the message.
        Raises:
            InvalidSettings: it is missing, no object, or has a forbidden name.
        """
        rule = f"a JSON object of further arguments of {of}, not {', '.join(forbidden)}"
        return self.value(name, json_object, lambda given: not set(given) & set(forbidden), rule)

    def checkpoint(self, environment: Mapping[str, str]) -> str:
        """The parameter `checkpoint`, or `VLM_CHECKPOINT` of the environment where it is empty.

        Raises:
            InvalidSettings: neither names one.
        """
        checkpoint = self.text("checkpoint") or environment.get("VLM_CHECKPOINT", "")
        if not checkpoint:
            raise InvalidSettings("checkpoint is empty, and so is VLM_CHECKPOINT; name a local path or a hub id")
        return checkpoint


def json_object(text: str) -> Mapping[str, Any]:
    """Parse keyword arguments; empty text is none.

    Raises:
        ValueError: it is no JSON, or no object.
    """
    parsed = json.loads(text or "{}")
    if not isinstance(parsed, dict):
        raise ValueError("not an object")
    return parsed
