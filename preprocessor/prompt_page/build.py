"""What is known of a prompt → its page as plain data."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from preprocessor.client.media import MODALITY_NAMES
from preprocessor.prompt_page import tables
from preprocessor.prompt_page.facts import PreparedPrompt
from preprocessor.prompt_page.frames import ItemPixels, locate_pixels
from preprocessor.prompt_page.page import Frame, Item, Page, Pair, PatchGrid, Sample, Timeline, Token
from preprocessor.prompt_page.tokens import Span, TokenTexts, token_map, valid_spans
from preprocessor.v1 import preprocessor_pb2 as pb

_Value = TypeVar("_Value")


@dataclass(frozen=True, slots=True, eq=False)
class Subject:
    """A prompt, and how it came here.

    Attributes:
        origin: In a sentence, for the page's head.
        texts: None where no tokenizer is at hand.
        notes: What cannot be known of it, and why.
    """

    prepared: PreparedPrompt
    origin: str
    texts: TokenTexts | None
    notes: tuple[str, ...] = ()


def build_page(subject: Subject, most_frames: int) -> Page:
    """The page.

    Args:
        most_frames: Frames that it shows of each item, evenly spread; of others it tells number and time.
    """
    prepared = subject.prepared
    header, report, tensors = prepared.result.header, prepared.result.report, prepared.result.tensors
    located = locate_pixels(header, tensors, prepared.model)
    notes = list(subject.notes)
    if isinstance(located, str):
        notes.append(f"No frames are shown: {located}.")
    tokens: list[Token] = []
    ids, spans = _integers(tensors.get("input_ids")), None
    if ids is not None and (given := _integers(tensors.get("item_spans"), columns=3)) is not None:
        spans = valid_spans(given, len(ids), len(header.items))
    if ids is None:
        notes.append("There is no token map: the result has no input_ids of one prompt.")
    else:
        tokens = token_map(ids, spans, [item.key for item in header.items], subject.texts or TokenTexts())
        if spans is None and header.items:
            notes.append("Which tokens stand for which medium is not told: a long run of one id is shown as one piece.")
    items = tuple(
        _item(place, prepared, None if isinstance(located, str) else located[place], spans, most_frames)
        for place in range(len(header.items))
    )
    return Page(
        title=f"{header.token_count:,} tokens for {header.model}",
        origin=subject.origin,
        tiles=tuple(_tiles(header, report, prepared.model)),
        items=items,
        tokens=tuple(tokens),
        token_counts=tuple(_token_counts(tokens)),
        stages=tuple(tables.stages(report)),
        estimates=tuple(tables.estimates(report, prepared.facts)),
        tensors=tuple(tables.tensor_rows(header.tensors)),
        settings=tuple(tables.settings(header, prepared.spec, prepared.model)),
        digests=tuple(tables.digests(header)),
        notes=tuple(notes),
    )


def frame_marks(item: pb.Item, place: int, position: int, report: pb.Report) -> tuple[str, ...]:
    """What is to be said of one of an item's frames.

    Args:
        place: Of the item in the header.
        position: Of the frame among the item's; behind the chosen ones lie copies of the last.
    """
    if position >= len(item.frame_indices):
        return ("padding",)
    index = item.frame_indices[position]
    marks = ["repeated"] if position and item.frame_indices[position - 1] == index else []
    marks += [
        f"substituted by frame {one.used_frame_index}"
        for one in report.substitutions
        if one.item_index == place and one.frame_index == index
    ]
    return tuple(marks)


def _item(
    place: int,
    prepared: PreparedPrompt,
    pixels: ItemPixels | None,
    spans: Sequence[Span] | None,
    most_frames: int,
) -> Item:
    header, report, facts = prepared.result.header, prepared.result.report, prepared.facts
    item = header.items[place]
    runs = facts.runs[place] if facts is not None and place < len(facts.runs) else None
    is_only_video = sum(one.modality == pb.MODALITY_VIDEO for one in header.items) == 1
    decoded = []
    if runs is not None and facts is not None:
        passed = sum(max(0, stop - start) for start, stop in runs)
        counted = f"{facts.decoded_frame_count:,} decoded, " if is_only_video else ""
        decoded = [f"{counted}{passed:,} of {item.source.video.frame_count:,} frames passed by the decoder"]
    timeline = None
    if item.source.HasField("video") and item.frame_indices:
        samples = [
            Sample(index, seconds, frame_marks(item, place, position, report))
            for position, (index, seconds) in enumerate(zip(item.frame_indices, item.times_seconds, strict=False))
        ]
        clip = item.source.video
        timeline = Timeline(clip.frame_count, clip.duration_seconds, tuple(samples), runs)
    frames: tuple[Frame, ...] = ()
    notes: list[str] = []
    grid = None
    if pixels is not None:
        grid = PatchGrid(
            pixels.grid[1], pixels.grid[2], pixels.merge_size, pixels.shape.block_size, pixels.shape.patch_size
        )
        frames = _frames(item, place, pixels, report, _positions(spans, place), most_frames)
        hidden = sum(frame.pixels is None for frame in frames)
        if hidden:
            notes.append(f"{hidden:,} of {len(frames):,} frames are not shown: --most-frames shows more.")
        if pixels.mean_std is not None:
            notes.append(f"Colours are computed back from normalized {pixels.rows.dtype} values.")
    modality = MODALITY_NAMES.get(item.modality, "unknown")
    return Item(
        key=item.key,
        modality=modality,
        summary=f"{modality}, {item.token_count:,} tokens" if item.token_count else modality,
        facts=tuple(tables.facts_of(item, decoded)),
        timeline=timeline,
        grid=grid,
        frames=frames,
        notes=tuple(notes),
    )


def _frames(
    item: pb.Item, place: int, pixels: ItemPixels, report: pb.Report, positions: Sequence[int], most_frames: int
) -> tuple[Frame, ...]:
    count = pixels.frame_count if item.source.HasField("video") else 1  # an image fills every place of its patches
    shown = set(np.linspace(0, count - 1, min(count, max(1, most_frames))).round().astype(int).tolist())
    tokens_a_group = pixels.group_rows // pixels.merge_size**2
    has_own_tokens = len(positions) == tokens_a_group * pixels.grid[0]
    frames = []
    for position in range(count):
        group = position // pixels.shape.temporal_patch_size
        first = group * tokens_a_group
        if item.source.HasField("video"):
            marks, chosen = frame_marks(item, place, position, report), min(position, len(item.frame_indices) - 1)
        else:
            marks, chosen = (), -1
        frames.append(
            Frame(
                position,
                _at(item.frame_indices, chosen),
                _at(item.times_seconds, chosen),
                _at(item.prompt_times_seconds, chosen),
                marks,
                pixels.frame(position) if position in shown else None,
                group,
                pixels.first_row + group * pixels.group_rows,
                _runs(positions[first : first + tokens_a_group]) if has_own_tokens else (),
            )
        )
    return tuple(frames)


def _at(values: Sequence[_Value], place: int) -> _Value | None:
    return values[place] if 0 <= place < len(values) else None


def _positions(spans: Sequence[Span] | None, place: int) -> list[int]:
    """Positions in the prompt of all tokens that stand for an item."""
    own = [range(offset, offset + length) for item, offset, length in spans or () if item == place]
    return list(itertools.chain(*own))


def _runs(positions: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """First and length of each run of consecutive positions."""
    found = []
    for _, run in itertools.groupby(enumerate(positions), lambda one: one[1] - one[0]):
        own = [position for _, position in run]
        found.append((own[0], len(own)))
    return tuple(found)


def _integers(array: npt.NDArray[Any] | None, columns: int = 0) -> npt.NDArray[np.integer[Any]] | None:
    """A vector of integers, or one with so many columns a row; also what a processor made as a batch of one."""
    if array is None or not np.issubdtype(array.dtype, np.integer):
        return None
    if not columns and array.ndim == 2 and len(array) == 1:
        array = array[0]
    fits = array.ndim == 2 and array.shape[1] == columns if columns else array.ndim == 1
    return array if fits else None


def _tiles(header: pb.Header, report: pb.Report, model: pb.Model | None) -> list[Pair]:
    path = "" if model is None else tables.name_of(pb.PreprocessingPath, model.path, "PREPROCESSING_PATH_").lower()
    about = [("family", f"{model.family}, {path} path")] if model is not None else []
    return [
        ("model", header.model),
        *about,
        ("tokens", f"{header.token_count:,}"),
        ("media", str(len(header.items))),
        ("files", tables.size(report.received_bytes)),
        ("pixels", tables.size(report.pixel_bytes)),
        ("CPU", f"{sum(stage.cpu_ms for stage in report.stages):,.1f} ms"),
        ("request id", header.request_id or "none"),
    ]


def _token_counts(tokens: Sequence[Token]) -> list[Pair]:
    """How many tokens are of each kind."""
    counts = Counter[str]()
    for token in tokens:
        counts[token.kind] += token.count
    names = {"text": "text", "time": "timestamps", "special": "special", "media": "media", "omitted": "not shown"}
    return [(names[kind], f"{counts[kind]:,}") for kind in names if counts[kind]]
