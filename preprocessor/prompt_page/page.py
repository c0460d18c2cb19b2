"""The page as plain data: what is shown, before it is HTML. Texts are untrusted until `markup` has escaped them."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

Pair = tuple[str, str]
"""A label and a value."""


@dataclass(frozen=True, slots=True, eq=False)
class Frame:
    """One picture of an item, as the model gets it.

    Attributes:
        position: Among the pictures of its item, from 0.
        index, time_seconds, prompt_seconds: Of a video's frame: its number in the file, its time there, and the time that the
            prompt may state. None for an image.
        marks: Such as "repeated" or "substituted by 12".
        pixels: RGB uint8 [height, width, 3]; None where it is not shown in the page.
        group: Its temporal patch, from 0; frames of one share its tokens.
        first_row: Its temporal patch's first row of the pixel tensor.
        token_runs: Of the tokens of its temporal patch, each run's first position in the prompt and length; empty where they are
            not known.
    """

    position: int
    index: int | None
    time_seconds: float | None
    prompt_seconds: float | None
    marks: tuple[str, ...]
    pixels: npt.NDArray[np.uint8] | None = field(repr=False)
    group: int
    first_row: int
    token_runs: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Sample:
    """A chosen frame on the timeline."""

    index: int
    time_seconds: float
    marks: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Timeline:
    """The frames of a clip, by number.

    Attributes:
        runs: Frames that the decoder passed, as (first, behind the last); None where that is not known.
    """

    frame_count: int
    duration_seconds: float
    samples: tuple[Sample, ...]
    runs: tuple[tuple[int, int], ...] | None


@dataclass(frozen=True, slots=True)
class PatchGrid:
    """How frames are cut, in patches; how many patches a side become one token, and how many follow one another in rows."""

    height: int
    width: int
    merge_size: int
    block_size: int
    patch_size: int


@dataclass(frozen=True, slots=True, eq=False)
class Item:
    """One medium at its place in the prompt.

    Attributes:
        facts: What its file and its rows are.
        frames: Empty where its pixels cannot be shown; `notes` then say why.
    """

    key: str
    modality: str
    summary: str
    facts: tuple[Pair, ...]
    timeline: Timeline | None
    grid: PatchGrid | None
    frames: tuple[Frame, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Token:
    """One token, or a run of tokens that stands for a part of an item or repeats one id.

    Attributes:
        kind: "text", "time" (of a timestamp), "special", "media", or "omitted" for tokens that the page leaves out.
        position, count: Of the first; how many.
        token_id: None for tokens left out.
        text: What is shown.
        item: Of "media", the item's place among the items; None where that is not known.
        label: All that is known, in one line.
    """

    kind: str
    position: int
    count: int
    token_id: int | None
    text: str
    item: int | None
    label: str


@dataclass(frozen=True, slots=True)
class Stage:
    """A stage's time; `cpu_ms` 0 where it only waits."""

    name: str
    wall_ms: float
    cpu_ms: float


@dataclass(frozen=True, slots=True)
class Estimate:
    """CPU time as estimated from headers, beside what was measured; None where there is no such figure."""

    name: str
    estimated_ms: float | None
    measured_ms: float | None


@dataclass(frozen=True, slots=True)
class Setting:
    """A setting, its value, and who decided it."""

    name: str
    value: str
    source: str


@dataclass(frozen=True, slots=True, eq=False)
class Page:
    """All of it."""

    title: str
    origin: str
    tiles: tuple[Pair, ...]
    items: tuple[Item, ...]
    tokens: tuple[Token, ...]
    token_counts: tuple[Pair, ...]
    stages: tuple[Stage, ...]
    estimates: tuple[Estimate, ...]
    tensors: tuple[tuple[str, str, str, str], ...]
    settings: tuple[Setting, ...]
    digests: tuple[Pair, ...]
    notes: tuple[str, ...]
