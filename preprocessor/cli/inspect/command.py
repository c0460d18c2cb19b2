"""`preprocessor inspect`: what a prompt became, as one HTML file and as pictures."""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path

from preprocessor.cli.inspect.origins import subject_of
from preprocessor.cli.output import check_output, summary
from preprocessor.cli.prompts import credentials_of
from preprocessor.cli.unanswered import explain
from preprocessor.client import CallFailed
from preprocessor.config import SettingError
from preprocessor.prompt_page.build import Subject, build_page, frame_marks
from preprocessor.prompt_page.frames import locate_pixels
from preprocessor.prompt_page.png import encode_png
from preprocessor.prompt_page.render import render

_LONGEST_NAME = 64  # of a medium, in a file's name


def run(options: argparse.Namespace) -> int:
    output = Path(options.output)
    check_output(output)
    try:
        subject = subject_of(options)
    except CallFailed as error:
        print(f"preprocessor: {explain(error, options, credentials_of(options))}", file=sys.stderr)
        return 1
    text = render(build_page(subject, options.most_frames))
    try:
        output.write_text(text, encoding="utf-8")
    except OSError as error:
        raise SettingError("--output", str(output), f"a file that can be written ({error.strerror})") from error
    saved = save_frames(subject, Path(options.save_frames)) if options.save_frames else None
    result = subject.prepared.result
    if options.json:
        about = {"page": str(output), "page_bytes": len(text.encode()), "saved_frame_count": saved or 0}
        print(json.dumps(about | summary(result.header, result.report)))
        return 0
    print(f"{output}: {result.header.token_count:,} tokens, {len(text.encode()) / 1e6:,.1f} MB; open it in a browser")
    if saved is not None:
        print(f"{options.save_frames}: {saved:,} frames")
    return 0


def save_frames(subject: Subject, folder: Path) -> int:
    """Write every frame as a PNG file named by item, medium, position and the frame's number; returns how many.

    Raises:
        SettingError: There are no frames to be written.
        OSError: A file cannot be written.
    """
    result = subject.prepared.result
    located = locate_pixels(result.header, result.tensors, subject.prepared.model)
    if isinstance(located, str):
        raise SettingError("--save-frames", str(folder), f"a prompt whose frames are known ({located})")
    folder.mkdir(parents=True, exist_ok=True)
    written = 0
    for place, (item, pixels) in enumerate(zip(result.header.items, located, strict=True)):
        stem = f"{place:02}-{re.sub(r'[^A-Za-z0-9._-]', '_', item.key)[:_LONGEST_NAME]}"
        is_video = item.source.HasField("video")
        for position in range(pixels.frame_count if is_video else 1):
            name = stem
            if is_video:
                is_padding = "padding" in frame_marks(item, place, position, result.report)
                number = "padding" if is_padding else f"frame{item.frame_indices[position]:06}"
                name = f"{stem}-{position:04}-{number}"
            (folder / f"{name}.png").write_bytes(encode_png(pixels.frame(position)))
            written += 1
    return written
