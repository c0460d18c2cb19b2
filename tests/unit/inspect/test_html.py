"""The page as a file: well-formed, self-contained, and safe with whatever a prompt holds."""

from __future__ import annotations

import base64
import hashlib
import io
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from preprocessor.prompt_page.build import build_page
from preprocessor.prompt_page.markup import escape, join, tag
from preprocessor.prompt_page.page import Page
from preprocessor.prompt_page.png import encode_png
from preprocessor.prompt_page.render import render
from tests.unit.inspect.prompts import HOSTILE, clip_and_photo, subject

_CODE = re.compile(r"<(style|script)>(.*?)</\1>", re.DOTALL)


@pytest.fixture(scope="module")
def shown(folder: Path) -> Page:
    return build_page(clip_and_photo(folder), most_frames=64)


@pytest.fixture(scope="module")
def html(shown: Page) -> str:
    return render(shown)


def parsed(html: str) -> ElementTree.Element:
    """The page as a tree, without its own style and script. It is written to be well-formed XML too, so that any slip shows."""
    doctype, markup = html.split("\n", 1)
    assert doctype == "<!DOCTYPE html>"
    return ElementTree.fromstring(_CODE.sub(r"<\1></\1>", markup))


def test_the_page_is_well_formed_and_names_each_element_once(html: str) -> None:
    tree = parsed(html)
    ids = Counter(name for element in tree.iter() if (name := element.get("id")))
    assert not [name for name, count in ids.items() if count > 1]
    for attribute in ("aria-labelledby", "aria-describedby"):
        named = {element.get(attribute) for element in tree.iter()} - {None}
        assert named <= ids.keys()
    links = {element.get("href") for element in tree.iter("a")}
    assert {link.removeprefix("#") for link in links if link} <= ids.keys()


def test_every_picture_has_a_text_and_holds_its_own_pixels(html: str, shown: Page) -> None:
    pictures = list(parsed(html).iter("img"))
    frames = [frame for item in shown.items for frame in item.frames]
    assert len(pictures) == len(frames) == 7
    for picture, frame in zip(pictures, frames, strict=True):
        assert picture.get("alt")
        kind, data = str(picture.get("src")).split(",")
        assert kind == "data:image/png;base64"
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))), frame.pixels)


def test_frames_that_are_left_out_are_counted_in_their_place(folder: Path) -> None:
    tree = parsed(render(build_page(clip_and_photo(folder), most_frames=2)))
    entries = ["".join(entry.itertext()) for entry in next(tree.iter("ol"))]
    assert entries == ["#0 · frame 0 · 0.00\u00a0s", "4 more, frames 30 to 119", "#5 · frame 119 · 3.97\u00a0s padding"]


def test_the_page_names_no_other_resource(html: str) -> None:
    for element in parsed(html).iter():
        for name in ("src", "href", "action", "srcset", "poster", "data"):
            assert (element.get(name) or "#").startswith(("#", "data:image/png")), ElementTree.tostring(element)
    style, script = (found[2] for found in _CODE.finditer(html))
    assert "url(" not in style and "@import" not in style
    assert not re.search(r"fetch|XMLHttpRequest|WebSocket|innerHTML|eval|https?:(?!//www\.w3\.org/2000/svg)", script)


def test_the_policy_allows_the_page_s_own_style_and_script_alone(html: str) -> None:
    found = next(meta for meta in parsed(html).iter("meta") if meta.get("http-equiv") == "Content-Security-Policy")
    policy = dict(part.split(" ", 1) for part in str(found.get("content")).split("; "))
    style, script = (
        base64.b64encode(hashlib.sha256(code[2].encode()).digest()).decode() for code in _CODE.finditer(html)
    )
    assert policy == {
        "default-src": "'none'",
        "img-src": "data:",
        "style-src": f"'sha256-{style}'",
        "script-src": f"'sha256-{script}'",
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    assert not any(
        name.startswith("on") or name == "style" for element in parsed(html).iter() for name in element.attrib
    )


def test_a_stranger_s_text_stays_text_wherever_it_stands(shown: Page) -> None:
    def spoiled(value: object) -> object:
        if isinstance(value, str):
            return value + HOSTILE
        if isinstance(value, tuple):
            return tuple(map(spoiled, value))
        if hasattr(value, "__dataclass_fields__"):
            return replace(
                value, **{name: spoiled(getattr(value, name)) for name in value.__dataclass_fields__ if name != "kind"}
            )  # type: ignore[type-var]
        return value

    page = spoiled(shown)
    assert isinstance(page, Page)
    tree, clean = parsed(render(page)), parsed(render(shown))
    assert Counter(one.tag for one in tree.iter()) == Counter(one.tag for one in clean.iter())
    text = "".join(tree.itertext())
    assert text.count("onerror=document.title") > 100  # of every text of the page
    assert "\\u{202e}\\u{1}" in text and "\u202e" not in text and "\x01" not in text


def test_a_prompt_that_spells_html_is_shown_as_text() -> None:
    page = build_page(subject("--text", HOSTILE.replace("\x01", "")), most_frames=1)
    text = "".join(parsed(render(page)).itertext())
    assert "<img src=x onerror=document.title='taken'>" in text
    assert "</style></script><script>" in text


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("<b a='1'>&", "&lt;b a=&#x27;1&#x27;&gt;&amp;"),
        ("\u202eabc\u2066", "\\u{202e}abc\\u{2066}"),
        ("\x00\x1b[31m\x7f", "\\u{0}\\u{1b}[31m\\u{7f}"),
        ("\ud800", "\\u{d800}"),
        ("a\tb\nc\u00a0d é 漢 🎬", "a\tb\nc\u00a0d é 漢 🎬"),
        ("\r\n", "\\u{d}\n"),
    ],
)
def test_text_is_escaped(text: str, written: str) -> None:
    assert escape(text) == written


def test_only_markup_passes_unescaped() -> None:
    assert tag("p", "<b>", tag("b", "x"), class_='"', hidden=True, id=None) == (
        '<p class="&quot;" hidden="hidden">&lt;b&gt;<b>x</b></p>'
    )
    assert join("&", tag("br"), None) == "&amp;<br/>"


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (9, 1), (13, 17)])
def test_png_files_hold_the_pixels(size: tuple[int, int]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(encode_png(pixels)))), pixels)
