"""The page of `preprocessor inspect` in a real Chromium: nothing refused, nothing loaded, used by keyboard, light and dark.

`SCREENSHOTS=folder` keeps pictures of it, to be looked at.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from preprocessor.models.family import Model
from preprocessor.prompt_page.build import build_page
from preprocessor.prompt_page.render import render
from tests.browser.chromium import Tab, browsing, find_chromium
from tests.service.conftest import serving
from tests.unit.inspect.prompts import HOSTILE, clip_and_photo, subject, write_media

pytestmark = [pytest.mark.browser, pytest.mark.skipif(find_chromium() is None, reason="needs Chromium")]

_CONTRASTS = """
(() => {
  const channels = (color) => color.match(/[\\d.]+/g).map(Number);
  const luminance = (color) => {
    const [r, g, b] = channels(color).slice(0, 3).map((value) => {
      const share = value / 255;
      return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (element) => {
    for (let one = element; one; one = one.parentElement) {
      const color = getComputedStyle(one).backgroundColor;
      if (channels(color)[3] !== 0) return color;
    }
    return "rgb(255, 255, 255)";
  };
  const poor = [];
  for (const element of document.body.querySelectorAll("*")) {
    const own = [...element.childNodes].some((node) => node.nodeType === Node.TEXT_NODE && node.textContent.trim());
    if (!own || element.closest("svg, script, .skip")) continue;
    const [one, other] = [luminance(getComputedStyle(element).color), luminance(behind(element))];
    const ratio = (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05);
    if (ratio < 4.5) poor.push(`${element.tagName}.${element.className} ${ratio.toFixed(2)}`);
  }
  return [...new Set(poor)];
})()
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pages")


@pytest_asyncio.fixture
async def tab(folder: Path, tmp_path: Path) -> AsyncIterator[Tab]:
    page = folder / "page.html"
    if not page.exists():
        page.write_text(render(build_page(clip_and_photo(folder), most_frames=64)), encoding="utf-8")
    async with browsing(tmp_path) as tab:
        await tab.resize(1240, 900)
        await tab.open(page)
        yield tab
        assert tab.complaints == []
        assert [url for url in tab.requested if not url.startswith(("data:image/png", page.as_uri()))] == []


async def keep_screenshot(tab: Tab, name: str) -> None:
    if folder := os.environ.get("SCREENSHOTS"):
        (Path(folder) / f"{name}.png").write_bytes(await tab.screenshot())


async def test_the_page_can_be_read_in_light_and_dark(tab: Tab) -> None:
    backgrounds = []
    for scheme in ("light", "dark"):
        await tab.prefer(scheme)
        backgrounds.append(await tab.evaluate("getComputedStyle(document.body).backgroundColor"))
        assert await tab.evaluate(_CONTRASTS) == []
        await keep_screenshot(tab, scheme)
    assert backgrounds == ["rgb(246, 247, 249)", "rgb(18, 21, 26)"]


@pytest.mark.parametrize("width", [360, 768, 1600])
async def test_the_page_fits_its_window(tab: Tab, width: int) -> None:
    await tab.resize(width, 800)
    assert await tab.evaluate("document.documentElement.scrollWidth") <= width
    await keep_screenshot(tab, f"width-{width}")


async def test_frames_are_chosen_by_keyboard_and_shown_large(tab: Tab) -> None:
    await tab.evaluate("document.querySelector('#item0 button.frame').focus()")
    await tab.press("ArrowRight", 2)
    focused = await tab.evaluate("document.activeElement.querySelector('img').alt")
    assert focused.startswith("clip.mp4, #2 · frame 60")
    assert await tab.evaluate("document.querySelector('#item0 .stage img').alt") == f"{focused}, enlarged"
    pressed = "[...document.querySelectorAll('#item0 button.frame')].map((one) => one.getAttribute('aria-pressed'))"
    assert await tab.evaluate(pressed) == ["false", "false", "true", "false", "false", "false"]
    await tab.press("End")
    assert "padding" in await tab.evaluate("document.activeElement.textContent")
    assert await tab.evaluate("document.querySelector('#item0 .stage img').naturalWidth") > 0


async def test_the_grid_tells_row_and_token_of_a_patch(tab: Tab, folder: Path) -> None:
    spans = clip_and_photo(folder).prepared.result.tensors["item_spans"]
    rows = clip_and_photo(folder).prepared.result.tensors["grid_thw"][0]
    await tab.evaluate("document.querySelector('#item0 button.frame').focus()")
    await tab.press("End")  # the third temporal patch
    await tab.press("Tab")
    assert await tab.evaluate("document.activeElement.getAttribute('role')") == "application"
    await tab.press("ArrowRight", 3)
    await tab.press("ArrowDown", 1)
    # Column 3, row 1: the second block of tokens; in it the patch of the second row and column.
    first_row = 2 * int(rows[1] * rows[2])
    assert await tab.evaluate("document.querySelector('#item0 .detail').textContent") == (
        f"temporal patch 2 · patch row 1, column 3 · row {first_row + 4 + 3} of the pixel tensor · "
        f"token at position {spans[2][1] + 1}"
    )
    lines = "getComputedStyle(document.querySelector('#item0 path.patches')).display"
    assert await tab.evaluate(lines) != "none"
    await tab.press("Tab")
    await tab.press(" ")
    assert await tab.evaluate(lines) == "none"


async def test_the_grid_follows_the_pointer(tab: Tab) -> None:
    overlay = "document.querySelector('#item1 .stage svg')"
    await tab.evaluate(f"{overlay}.scrollIntoView({{block: 'center'}})")
    area = await tab.evaluate(
        f"(({{x, y, width, height}}) => [x, y, width, height])({overlay}.getBoundingClientRect())"
    )
    x, y, width, height = area
    await tab.call("Input.dispatchMouseEvent", type="mouseMoved", x=x + width - 2, y=y + height - 2)
    grid = await tab.evaluate(
        "(({height, width}) => [height, width])(document.querySelector('#item1 .frames').dataset)"
    )
    told = await tab.evaluate("document.querySelector('#item1 .detail').textContent")
    assert told.startswith(f"temporal patch 0 · patch row {int(grid[0]) - 1}, column {int(grid[1]) - 1} · ")


async def test_tokens_tell_their_ids_by_keyboard_and_pointer(tab: Tab) -> None:
    detail = "document.getElementById('token').textContent"
    await tab.evaluate("document.getElementById('map').focus()")
    assert await tab.evaluate(detail) == "position 0 · id 151644 · '<|im_start|>'"
    await tab.press("ArrowRight")
    assert await tab.evaluate(detail) == "position 1 · id 872 · 'user'"
    active = "document.getElementById(document.getElementById('map').getAttribute('aria-activedescendant'))"
    assert await tab.evaluate(f"{active}.title") == await tab.evaluate(detail)
    assert await tab.evaluate("document.querySelectorAll('#map [aria-selected=true]').length") == 1
    span = "document.querySelector('#map .medi')"
    await tab.evaluate(f"{span}.scrollIntoView({{block: 'center'}})")
    x, y = await tab.evaluate(f"(({{x, y}}) => [x, y])({span}.getBoundingClientRect())")
    await tab.call("Input.dispatchMouseEvent", type="mouseMoved", x=x + 5, y=y + 5)
    told = await tab.evaluate(detail)
    assert told.startswith("clip.mp4: positions ") and "id 151656" in told


async def test_a_medium_s_tokens_lead_to_their_frame(tab: Tab) -> None:
    await tab.evaluate("document.getElementById('map').focus()")
    second = "((map) => [...map.children].indexOf(map.querySelectorAll('.medi')[1]))(document.getElementById('map'))"
    await tab.press("ArrowRight", await tab.evaluate(second))
    await tab.press("Enter")
    assert (await tab.evaluate("document.activeElement.querySelector('img').alt")).startswith("clip.mp4, #2 ·")
    assert await tab.evaluate("document.activeElement.getAttribute('aria-pressed')") == "true"


async def test_every_list_is_reached_by_tab(tab: Tab) -> None:
    reached = []
    for _ in range(20):
        await tab.press("Tab")
        reached.append(
            await tab.evaluate(
                "((one) => one.id || one.getAttribute('role') || one.className || one.tagName)(document.activeElement)"
            )
        )
    assert reached[0] == "skip"
    assert [name for name in reached if name in ("frame", "application", "map")] == [
        *("frame", "application", "frame", "application", "map")
    ]


async def test_a_stranger_s_html_does_nothing(folder: Path, tmp_path: Path) -> None:
    page = folder / "hostile.html"
    _, picture = write_media(folder)
    hostile = folder / f"{HOSTILE[:50].replace('/', '∕').replace(chr(1), '')}.png"
    hostile.write_bytes(picture.read_bytes())
    asked = ("--image", hostile, "--text", HOSTILE.replace("\x01", ""))
    page.write_text(render(build_page(subject(*asked), most_frames=64)), encoding="utf-8")
    async with browsing(tmp_path / "browser") as tab:
        await tab.open(page)
        assert (await tab.evaluate("document.title")).endswith("tokens for qwen3-vl")
        assert await tab.evaluate("document.images.length") == 2
        assert await tab.evaluate("document.scripts.length") == 1
        assert "<img src=x onerror=" in await tab.evaluate("document.body.textContent")
        assert tab.complaints == []
        # The second fence: what is put into the page nevertheless does not run.
        await tab.evaluate(
            "document.body.insertAdjacentHTML('beforeend', `<img src=x onerror=\"document.title='taken'\">`)"
        )
        await tab.evaluate("new Promise((done) => setTimeout(done))")
        assert (await tab.evaluate("document.title")) != "taken"


async def test_the_form_of_a_service_leads_to_the_page(model: Model, tmp_path: Path) -> None:
    async with serving(model, is_inspectable=True) as caller, browsing(tmp_path) as tab:
        await tab.open(f"http://{caller.server.http_address}/inspect")
        assert await tab.evaluate(_CONTRASTS) == []
        await keep_screenshot(tab, "form")
        await tab.evaluate("document.querySelector('button').focus()")
        async with tab.loading():
            await tab.press("Enter")
        assert await tab.evaluate("document.getElementById('map') !== null")
        assert "tokens for" in await tab.evaluate("document.title")
        assert tab.complaints == []
