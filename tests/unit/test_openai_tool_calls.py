"""Tool calls in an answer's text, wherever the text is cut."""

from __future__ import annotations

import json

import pytest

from preprocessor.service.openai.tool_calls import ToolCallReader

CALL = '<tool_call>\n{"name": "zoom", "arguments": {"by": 2, "at": "é</tool"}}\n</tool_call>'


def read(text: str, size: int) -> tuple[str, list[tuple[int, str, object]]]:
    reader, shown, calls = ToolCallReader(), "", []
    for at in range(0, len(text), size):
        piece, found = reader.push(text[at : at + size])
        shown += piece
        calls += found
    told = [(one["index"], one["function"]["name"], json.loads(one["function"]["arguments"])) for one in calls]
    return shown + reader.finish(), told


ZOOM = "zoom", {"by": 2, "at": "é</tool"}


@pytest.mark.parametrize("size", [1, 2, 5, 11, 1000])
@pytest.mark.parametrize(
    ("text", "shown", "calls"),
    [
        ("no call <tool", "no call <tool", []),
        (CALL, "", [(0, *ZOOM)]),
        (f"See: {CALL}\n{CALL} after", "See: after", [(0, *ZOOM), (1, *ZOOM)]),
        ("<tool_call>{}</tool_call>", "<tool_call>{}</tool_call>", []),
        ("<tool_call>{</tool_call>" + CALL, "<tool_call>{</tool_call>", [(0, *ZOOM)]),
        ("<tool_call>" + "[" * 9999 + "</tool_call>", "<tool_call>" + "[" * 9999 + "</tool_call>", []),
        (CALL[:-3], CALL[:-3], []),
    ],
    ids=["none", "one", "two", "no function", "no JSON", "deep", "unfinished"],
)
def test_calls_are_taken_out_and_all_else_is_shown(
    text: str, shown: str, calls: list[tuple[int, str, object]], size: int
) -> None:
    assert read(text, size) == (shown, calls)
