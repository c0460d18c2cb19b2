"""The page as plain data → one HTML file that loads nothing and runs no script but its own.

A Content-Security-Policy in the page allows its one script and its one style sheet by their digests, and images from data URLs:
text that got past the escaping could neither run nor load anything.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Sequence
from importlib.resources import files
from string import Template

from preprocessor import __version__
from preprocessor.prompt_page.items import item_section
from preprocessor.prompt_page.markup import Child, Markup, escape, join, tag
from preprocessor.prompt_page.page import Estimate, Page, Pair, Setting, Stage, Token

_SECTIONS = {"media": "Media", "tokens": "Tokens", "cost": "Cost", "tensors": "Tensors", "settings": "Settings"}
_HINT = (
    "Point at a token, or press an arrow key, for its position and id. Enter or a double click on a medium's tokens goes to "
    "their frame. Tab moves between lists; arrow keys, Home and End move within one."
)


def render(page: Page) -> str:
    """The whole file."""
    style, script = (files(__package__).joinpath(name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    policy = (
        f"default-src 'none'; img-src data:; style-src '{policy_digest(style)}'; script-src '{policy_digest(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    return Template(files(__package__).joinpath("page.html").read_text(encoding="utf-8")).substitute(
        policy=escape(policy),
        title=escape(page.title),
        origin=escape(page.origin),
        version=escape(__version__),
        style=style,
        script=script,
        navigation=join(*(tag("a", name, href=f"#{place}") for place, name in _SECTIONS.items())),
        tiles=_pairs(page.tiles, "tiles"),
        notes=_notes(page.notes),
        media=join(*(item_section(item, place) for place, item in enumerate(page.items))) or _nothing("no media"),
        tokens=_tokens(page.tokens, page.token_counts),
        stages=_stages(page.stages),
        estimates=_estimates(page.estimates),
        tensors=table(("tensor", "type", "shape", "size"), page.tensors, numbers=(3,)),
        settings=_settings(page.settings),
        digests=_pairs(page.digests, "digests"),
    )


def table(heads: Sequence[str], rows: Iterable[Sequence[Child]], numbers: Sequence[int] = ()) -> Markup:
    """A table whose columns `numbers` are aligned to the right; it scrolls sideways where it is too wide."""

    def cells(name: str, row: Sequence[Child], scope: str | None = None) -> Markup:
        return join(*(tag(name, one, class_="n" if i in numbers else None, scope=scope) for i, one in enumerate(row)))

    body = [tag("tr", cells("td", row)) for row in rows]
    if not body:
        return _nothing("not known")
    head = tag("thead", tag("tr", cells("th", heads, "col")))
    return tag("div", tag("table", head, tag("tbody", *body)), class_="wide")


def policy_digest(text: str) -> str:
    """How a Content-Security-Policy names a script or a style sheet."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _pairs(pairs: Iterable[Pair], class_: str) -> Markup:
    return tag("dl", *(tag("div", tag("dt", name), tag("dd", value)) for name, value in pairs), class_=class_)


def _notes(notes: Sequence[str]) -> Markup:
    if not notes:
        return Markup()
    head = tag("h2", "What this page does not know", id="unknown")
    return tag(
        "section", head, tag("ul", *(tag("li", note) for note in notes)), class_="notes", aria_labelledby="unknown"
    )


def _nothing(text: str) -> Markup:
    return tag("p", text, class_="nothing")


def _tokens(tokens: Sequence[Token], counts: Sequence[Pair]) -> Markup:
    if not tokens:
        return _nothing("not known")
    legend = tag(
        "ul",
        *(tag("li", tag("b", name, class_=f"t {name[:4]}"), f" {count}") for name, count in counts),
        class_="legend",
    )
    pieces = [_token(token, place) for place, token in enumerate(tokens)]
    detail = tag(
        "p",
        _HINT,
        id="token",
        class_="detail",
        aria_live="polite",
    )
    listed = tag(
        "div",
        *pieces,
        id="map",
        class_="map",
        role="listbox",
        tabindex=0,
        aria_label="Tokens of the prompt",
        aria_describedby="token",
    )
    return join(legend, detail, listed)


def _token(token: Token, place: int) -> Markup:
    text: Child = token.text.replace("\r\n", "\\r\\n\n").replace("\n", "↵\n") or "∅"
    if token.kind == "media":
        text = join(token.text, tag("small", f"\u00a0×\u00a0{token.count:,}"))
    kinds = {"text": "text", "time": "time", "special": "spec", "media": "medi", "omitted": "not"}
    return tag(
        "span",
        text,
        id=f"t{place}",
        class_=f"t {kinds[token.kind]}",
        role="option",
        aria_selected="false",
        title=token.label,
        data_item=token.item,
        data_position=token.position if token.kind == "media" else None,
    )


def _stages(stages: Sequence[Stage]) -> Markup:
    most = max((max(one.wall_ms, one.cpu_ms) for one in stages), default=0.0) or 1.0
    rows = [
        (
            one.name,
            f"{one.wall_ms:,.1f}",
            f"{one.cpu_ms:,.1f}" if one.cpu_ms else "",
            _bar(one.wall_ms / most, one.cpu_ms / most),
        )
        for one in stages
    ]
    if rows:
        rows.append(
            ("sum", f"{sum(one.wall_ms for one in stages):,.1f}", f"{sum(one.cpu_ms for one in stages):,.1f}", Markup())
        )
    return table(("stage", "wall ms", "CPU ms", "wall, and CPU of it"), rows, numbers=(1, 2))


def _bar(wall: float, cpu: float) -> Markup:
    """Shares of the widest bar, 0 to 1."""
    rects = [
        tag("rect", class_=name, width=f"{100 * min(share, 1):.2f}", height=8)
        for name, share in (("wall", wall), ("cpu", cpu))
    ]
    return tag("svg", *rects, class_="bar", viewBox="0 0 100 8", preserveAspectRatio="none", aria_hidden="true")


def _estimates(estimates: Sequence[Estimate]) -> Markup:
    def ms(value: float | None) -> str:
        return "–" if value is None else f"{value:,.1f}"

    rows = [
        (
            one.name,
            ms(one.estimated_ms),
            ms(one.measured_ms),
            f"{one.measured_ms / one.estimated_ms:,.1f} ×" if one.measured_ms and one.estimated_ms else "",
        )
        for one in estimates
    ]
    known = table(("part", "plan's estimate, CPU ms", "here, CPU ms", "here ÷ estimate"), rows, numbers=(1, 2, 3))
    about = "The first run of a process, which is slower than later ones: `plan --measure` tells the median of several."
    return join(known, tag("p", about, class_="note") if rows else None)


def _settings(settings: Sequence[Setting]) -> Markup:
    rows = [(one.name, tag("code", one.value), one.source) for one in settings]
    return table(("setting", "value", "decided by"), rows)
