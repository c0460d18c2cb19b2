"""One medium of the page as HTML: its facts, its timeline, its frames with the patch grid over them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from preprocessor.prompt_page.markup import Child, Markup, join, tag
from preprocessor.prompt_page.page import Frame, Item, PatchGrid, Sample, Timeline
from preprocessor.prompt_page.png import data_url

_WIDTH = 1000  # of a timeline, in units of its view box


def item_section(item: Item, place: int) -> Markup:
    """An item with all that is known of it."""
    name = f"item{place}"
    facts = tag("dl", *(tag("div", tag("dt", label), tag("dd", value)) for label, value in item.facts), class_="facts")
    head = tag("h3", tag("span", str(place), class_="place"), item.key, tag("small", item.summary), id=f"{name}-head")
    parts: list[Child] = [head, facts]
    if item.timeline is not None:
        parts.append(_timeline(item.timeline))
    parts += [tag("p", note, class_="note") for note in item.notes]
    if item.frames and item.grid is not None:
        parts.append(_frames(item, item.grid))
    return tag("section", *parts, class_="item", id=name, aria_labelledby=f"{name}-head")


def _timeline(timeline: Timeline) -> Markup:
    thickness = min(3.0, _WIDTH / 2 / max(1, len(timeline.samples)))
    count = max(1, timeline.frame_count, *(sample.index + 1 for sample in timeline.samples))

    def x(frame: int) -> str:
        return f"{_WIDTH * min(max(frame, 0), count) / count:.2f}"

    shapes: list[Markup] = [tag("rect", class_="clip", y=14, width=_WIDTH, height=20)]
    for start, stop in timeline.runs or ():
        width = max(2.0, float(x(stop)) - float(x(start)))
        label = tag("title", f"frames {start:,} to {stop - 1:,}: passed by the decoder")
        shapes.append(tag("g", label, tag("rect", class_="run", x=x(start), y=14, width=f"{width:.2f}", height=20)))
    for sample in timeline.samples:
        center = float(x(sample.index)) + _WIDTH / count / 2
        mark = tag(
            "rect",
            class_=f"sample {_mark_class(sample.marks)}",
            x=f"{center - thickness / 2:.2f}",
            y=4,
            width=f"{thickness:.2f}",
            height=40,
        )
        shapes.append(tag("g", tag("title", _sample_label(sample)), mark))
    picture = tag(
        "svg",
        *shapes,
        viewBox=f"0 0 {_WIDTH} 48",
        preserveAspectRatio="none",
        role="img",
        aria_label=_timeline_label(timeline),
    )
    axis = tag(
        "div",
        tag("span", "frame 0"),
        tag("span", f"frame {count - 1:,}, end {timeline.duration_seconds:.2f} s"),
        class_="axis",
    )
    keys = [tag("li", tag("i", class_=kind), text) for kind, text in _timeline_keys(timeline)]
    return tag("figure", picture, axis, tag("figcaption", tag("ul", *keys, class_="key")), class_="timeline")


def _timeline_keys(timeline: Timeline) -> Iterator[tuple[str, str]]:
    yield "sample", f"sampled ({len(timeline.samples):,})"
    for mark in ("repeated", "substituted"):
        if found := sum(_mark_class(sample.marks) == mark for sample in timeline.samples):
            yield f"sample {mark}", f"{mark} ({found:,})"
    if timeline.runs is None:
        yield "clip", "what was decoded beside them is not known"
        return
    passed = sum(stop - start for start, stop in timeline.runs)
    yield "run", f"passed by the decoder ({passed:,}); some that nothing refers to are skipped"
    yield "clip", f"skipped ({max(0, timeline.frame_count - passed):,})"


def _timeline_label(timeline: Timeline) -> str:
    return "Timeline of the clip: " + "; ".join(text for _, text in _timeline_keys(timeline))


def _sample_label(sample: Sample) -> str:
    return ", ".join([f"frame {sample.index:,}, {sample.time_seconds:.3f} s", *sample.marks])


def _mark_class(marks: tuple[str, ...]) -> str:
    """The most important mark, as a class: a substituted frame rather than a repeated one."""
    kinds = {mark.partition(" ")[0] for mark in marks}
    return next((kind for kind in ("substituted", "padding", "repeated") if kind in kinds), "")


def _frames(item: Item, grid: PatchGrid) -> Markup:
    """The frames in a row; the script adds the large one with the grid over it."""
    entries: list[Markup] = []
    for is_shown, run in itertools.groupby(item.frames, lambda frame: frame.pixels is not None):
        frames = list(run)
        entries += [_thumbnail(item, frame, grid) for frame in frames] if is_shown else [_left_out(frames)]
    strip = tag("ol", *(tag("li", entry) for entry in entries), class_="strip", aria_label=f"Frames of {item.key}")
    return tag(
        "div",
        strip,
        class_="frames",
        data_height=grid.height,
        data_width=grid.width,
        data_merge=grid.merge_size,
        data_block=grid.block_size,
        data_patch=grid.patch_size,
    )


def _thumbnail(item: Item, frame: Frame, grid: PatchGrid) -> Markup:
    assert frame.pixels is not None
    label = frame_label(frame)
    caption = tag("span", label, *_badges(frame.marks), class_="caption")
    picture = tag(
        "img",
        src=data_url(frame.pixels),
        alt=f"{item.key}, {label}",
        width=grid.width * grid.patch_size,
        height=grid.height * grid.patch_size,
    )
    return tag(
        "button",
        picture,
        caption,
        type="button",
        class_="frame",
        data_group=frame.group,
        data_row=frame.first_row,
        data_token=frame.token_runs[0][0] if frame.token_runs else None,
        data_tokens=" ".join(f"{first}+{length}" for first, length in frame.token_runs) or None,
    )


def _left_out(frames: list[Frame]) -> Markup:
    """Stands for frames that the page does not show."""
    numbers = [f"{frame.index:,}" for frame in (frames[0], frames[-1]) if frame.index is not None]
    marks = dict.fromkeys(mark for frame in frames for mark in frame.marks)
    text = f"{len(frames):,} more, frames {' to '.join(dict.fromkeys(numbers))}"
    return tag("span", text, *_badges(tuple(marks)), class_="frame more")


def _badges(marks: tuple[str, ...]) -> list[Child]:
    return [join(" ", tag("b", mark, class_=f"mark {_mark_class((mark,))}")) for mark in marks]


def frame_label(frame: Frame) -> str:
    """A frame's place, number and times."""
    if frame.index is None:
        return "as the model gets it"
    seconds = "" if frame.time_seconds is None else f" · {frame.time_seconds:.2f}\u00a0s"
    differs = frame.prompt_seconds is not None and (
        frame.time_seconds is None or abs(frame.prompt_seconds - frame.time_seconds) >= 0.005
    )
    stated = f" · in the prompt {frame.prompt_seconds:.2f}\u00a0s" if differs else ""
    return f"#{frame.position} · frame {frame.index:,}{seconds}{stated}"
