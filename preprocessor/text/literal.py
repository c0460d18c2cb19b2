"""Literal parts of a chat, which go through the chat template as marks.

Rendered text does not show which words came from a literal part. So the template gets a mark in place of each literal part:
random letters and digits that mean nothing to a template and cannot be guessed. In the rendered text, each mark is replaced by
the part's own text, which is then known to be literal.
"""

from __future__ import annotations

import dataclasses
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field

from preprocessor.errors import InvalidRequest
from preprocessor.text.encoding import PromptPiece
from preprocessor.types.request import ChatPrompt, MediaPart, TextPart


@dataclass(frozen=True, slots=True)
class PromptText:
    """A rendered prompt.

    Attributes:
        text: With a mark for each literal part.
        literals: Mark → the part's text.
    """

    text: str = field(repr=False)
    literals: Mapping[str, str] = field(default_factory=dict, repr=False)

    def pieces(self) -> list[PromptPiece]:
        """The text cut at its marks, each with the part that it stands for."""
        if not self.literals:
            return [(self.text, False)]
        pattern = re.compile("(" + "|".join(self.literals) + ")")
        return [(self.literals.get(piece, piece), piece in self.literals) for piece in pattern.split(self.text)]

    def __len__(self) -> int:
        """Characters, marks replaced."""
        return sum(len(piece) for piece, _ in self.pieces())


def mark_literals(prompt: ChatPrompt) -> tuple[ChatPrompt, dict[str, str]]:
    """The chat with marks in the place of literal parts, and mark → text. An empty part is left as it is."""
    secret = secrets.token_hex(8)
    literals: dict[str, str] = {}

    def marked(part: TextPart | MediaPart) -> TextPart | MediaPart:
        if not (isinstance(part, TextPart) and part.is_literal and part.text):
            return part
        mark = f"literal{secret}n{len(literals)}x"
        literals[mark] = part.text
        return TextPart(mark)

    messages = tuple(
        dataclasses.replace(message, parts=tuple(marked(part) for part in message.parts)) for message in prompt.messages
    )
    return dataclasses.replace(prompt, messages=messages), literals


def check_marks(text: PromptText) -> None:
    """Refuse a template that has not written every literal part as it was.

    Raises:
        InvalidRequest: `LITERAL_TEXT_REFUSED`.
    """
    if not all(mark in text.text for mark in text.literals):
        raise InvalidRequest(
            "the model's chat template leaves a literal_text out, or changes it: send it as text",
            reason="LITERAL_TEXT_REFUSED",
        )
