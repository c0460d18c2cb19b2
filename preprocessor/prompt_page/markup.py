"""Text → HTML that cannot be anything but text. Every string is escaped, unless it is `Markup`, which only `tag` makes.

Elements are written so that they are well-formed XML too, which tests check.
"""

from __future__ import annotations

import html
import unicodedata

_VOID = frozenset({"br", "img", "input", "meta", "rect", "line"})
_KEPT = frozenset("\t\n")


class Markup(str):
    """HTML, already escaped."""

    __slots__ = ()


Child = str | Markup | None


def tag(name: str, *children: Child, **attributes: str | float | bool | None) -> Markup:
    """An element.

    Args:
        attributes: `class_` is `class`, `data_x` is `data-x`. None and False leave one out; True gives it its own name as value.
    """
    written = ""
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        attribute = key.rstrip("_").replace("_", "-")
        written += f' {attribute}="{escape(attribute if value is True else str(value))}"'
    if name in _VOID:
        return Markup(f"<{name}{written}/>")
    return Markup(f"<{name}{written}>{join(*children)}</{name}>")


def join(*children: Child) -> Markup:
    """Pieces one after another, each escaped unless it is markup."""
    return Markup("".join(one if isinstance(one, Markup) else escape(one) for one in children if one is not None))


def escape(text: str) -> Markup:
    """Text for content and for quoted attributes; see `visible`."""
    return Markup(html.escape(visible(text), quote=True))


def visible(text: str) -> str:
    """Text in which characters without a form of their own, such as an override of the direction, are written as "\\u{…}"."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(one if one in _KEPT or not _is_hidden(one) else f"\\u{{{ord(one):x}}}" for one in text)


def _is_hidden(character: str) -> bool:
    return unicodedata.category(character) in ("Cc", "Cf", "Cs", "Cn", "Co", "Zl", "Zp")
