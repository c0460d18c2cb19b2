"""Tool calls in an answer's text, as Qwen's templates ask for them: a JSON object between `<tool_call>` and `</tool_call>`."""

from __future__ import annotations

import json
import secrets
from typing import Any

from preprocessor.text.detokenizer import overlap

_OPENING, _CLOSING = "<tool_call>", "</tool_call>"


class ToolCallReader:
    """Parts the text of one answer into what the user sees and calls of functions.

    A call is whole when it is returned. What stands between the two tags and is no call stays text.
    """

    def __init__(self) -> None:
        self._held = ""
        self.call_count = 0
        self._is_after_call = False

    def push(self, text: str) -> tuple[str, list[dict[str, Any]]]:
        """Text and calls that are certain now; text that may begin a call is held back."""
        self._held += text
        shown = ""
        calls: list[dict[str, Any]] = []
        while True:
            start = self._held.find(_OPENING)
            if start < 0:
                cut = len(self._held) - overlap(self._held, _OPENING)
                shown, self._held = shown + self._without_gap(self._held[:cut]), self._held[cut:]
                return shown, calls
            end = self._held.find(_CLOSING, start)
            shown, self._held = shown + self._without_gap(self._held[:start]), self._held[start:]
            if end < 0:
                return shown, calls
            length = end - start + len(_CLOSING)
            whole, self._held = self._held[:length], self._held[length:]
            call = _read_call(whole[len(_OPENING) : -len(_CLOSING)], self.call_count)
            if call is None:
                shown, self._is_after_call = shown + whole, False
            else:
                calls.append(call)
                self.call_count += 1
                self._is_after_call = True

    def finish(self) -> str:
        """What was held back."""
        text, self._held = self._held, ""
        return text

    def _without_gap(self, text: str) -> str:
        """The text, without white space that follows a call."""
        if self._is_after_call:
            text = text.lstrip()
            self._is_after_call = not text
        return text


def function_call(name: str, arguments: str, index: int) -> dict[str, Any]:
    """OpenAI's object for a call.

    Args:
        arguments: JSON text.
        index: Its place among the calls of the answer.
    """
    function = {"name": name, "arguments": arguments}
    return {"index": index, "id": f"call_{secrets.token_hex(12)}", "type": "function", "function": function}


def _read_call(text: str, index: int) -> dict[str, Any] | None:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    match value:
        case {"name": str(name), "arguments": dict(arguments)}:
            return function_call(name, json.dumps(arguments, ensure_ascii=False), index)
    return None
