"""Answers as a table and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from preprocessor.client.media import MODALITY_NAMES
from preprocessor.config import SettingError
from preprocessor.v1 import preprocessor_pb2 as pb


def summary(header: pb.Header, report: pb.Report) -> dict[str, Any]:
    """The `--json` object: what was prepared, and how long each stage took. What is not known of an item is null."""
    return {
        "model": header.model,
        "request_id": header.request_id,
        "token_count": header.token_count,
        "items": [
            {
                "key": item.key,
                "modality": MODALITY_NAMES.get(item.modality, "unknown"),
                "codec": _codec(item.source),
                "source_size_px": _size_px(item.source),
                "size_px": [item.patches.width_px, item.patches.height_px] if item.HasField("patches") else None,
                "grid_thw": [item.patches.grid_t, item.patches.grid_h, item.patches.grid_w]
                if item.HasField("patches")
                else None,
                "token_count": item.token_count or None,
                "frame_indices": list(item.frame_indices),
                "times_seconds": list(item.times_seconds),
                "padded_frame_count": item.patches.padded_frame_count,
                "sha256": item.source.content_sha256.hex(),
            }
            for item in header.items
        ],
        "timings_ms": {stage.stage: round(stage.wall_ms, 3) for stage in report.stages},
        "cpu_ms": {stage.stage: round(stage.cpu_ms, 3) for stage in report.stages if stage.cpu_ms},
        "substitutions": [
            {"key": one.key, "frame_index": one.frame_index, "used_frame_index": one.used_frame_index}
            for one in report.substitutions
        ],
        "bytes": {"received": report.received_bytes, "pixels": report.pixel_bytes},
        "cached_item_count": report.cached_item_count,
        "early_row_count": report.early_row_count,
    }


def table(header: pb.Header, report: pb.Report) -> str:
    """The same for people."""
    lines = [f"{header.token_count:,} tokens for {header.model}", ""]
    rows = [("item", "source", "frames", "resized", "grid t,h,w", "tokens")]
    for item in header.items:
        size_px = _size_px(item.source)
        source = f"{_codec(item.source)} {size_px[0]}x{size_px[1]}" if size_px else _codec(item.source)
        frames = f"{len(item.frame_indices)} of {item.source.video.frame_count}" if item.frame_indices else ""
        resized = grid = ""  # of tiles, and on the generic path, only the tensors tell
        if item.HasField("patches"):
            resized = f"{item.patches.width_px}x{item.patches.height_px}"
            grid = f"{item.patches.grid_t},{item.patches.grid_h},{item.patches.grid_w}"
        tokens = f"{item.token_count:,}" if item.token_count else ""  # the generic path does not count them
        rows.append((item.key, source, frames, resized, grid, tokens))
    if header.items:
        lines += [*columns(rows), ""]
    lines += [line for item in header.items if item.frame_indices for line in _frame_lines(item)]
    lines += [
        f"{s.key}: frame {s.frame_index} is damaged, {s.used_frame_index} in its place" for s in report.substitutions
    ]
    stages = [("stage", "wall ms", "CPU ms")]
    stages += [(s.stage, f"{s.wall_ms:,.1f}", f"{s.cpu_ms:,.1f}" if s.cpu_ms else "") for s in report.stages]
    volume = f"{report.received_bytes:,} bytes received, {report.pixel_bytes:,} bytes of pixels"
    if report.cached_item_count:
        volume += f", {report.cached_item_count} of {len(header.items)} items cached"
    if report.early_row_count:
        volume += f", {report.early_row_count:,} rows made while files were arriving"
    lines += [*columns(stages), "", volume]
    return "\n".join(lines)


def check_output(path: Path) -> None:
    """Refuse a file that cannot be written before seconds of work are spent on what goes into it.

    Raises:
        SettingError: It cannot.
    """
    if path.exists() and not path.is_file():  # a device, say, whose place the file would take
        raise SettingError("--output", str(path), "a file that can be written, no directory, device or pipe")
    try:
        if path.exists():
            path.open("r+b").close()
        else:
            path.open("xb").close()
            path.unlink()
    except OSError as error:
        accepted = f"a file that can be written, in a directory that is there ({error.strerror})"
        raise SettingError("--output", str(path), accepted) from error


def _frame_lines(item: pb.Item, shown: int = 6) -> list[str]:
    """Indices and times of the frames used, the middle left out where there are many."""
    frames = [f"{i} ({t:.2f} s)" for i, t in zip(item.frame_indices, item.times_seconds, strict=True)]
    if len(frames) > 2 * shown:
        frames = [*frames[:shown], "…", *frames[-shown:]]
    padded_count = item.patches.padded_frame_count
    padding = f", the last repeated {padded_count}x" if padded_count else ""
    return [f"{item.key}: frames " + ", ".join(frames) + padding, ""]


def _codec(source: pb.SourceInfo) -> str:
    """FFmpeg's name of a video's codec, or an image's format; empty of a sound."""
    return source.video.codec or source.image.format


def _size_px(source: pb.SourceInfo) -> tuple[int, int] | None:
    """Width and height of the file's pictures; None where it has none."""
    if source.HasField("audio"):
        return None
    pictures = source.video if source.HasField("video") else source.image
    return pictures.width_px, pictures.height_px


def columns(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Rows as aligned text, the first underlined as a heading; figures to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    aligned = [
        "  ".join(
            cell.rjust(width) if i and cell[:1].isdigit() else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    return [aligned[0], "  ".join("─" * width for width in widths), *aligned[1:]]
