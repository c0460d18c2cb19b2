"""What `prepare` prints of each kind of item."""

from __future__ import annotations

import pytest

from preprocessor.cli.output import summary, table
from preprocessor.v1 import preprocessor_pb2 as pb

PHOTO = pb.SourceInfo(image=pb.ImageSource(format="JPEG", width_px=640, height_px=480))
PATCHES = pb.PatchLayout(grid_t=1, grid_h=4, grid_w=6, width_px=96, height_px=64)
ITEMS = {
    "patches": pb.Item(key="a", source=PHOTO, token_count=6, patches=PATCHES),
    "tiles": pb.Item(key="a", source=PHOTO, token_count=1256),
    "generic": pb.Item(key="a", source=PHOTO),
    "sound": pb.Item(key="a", modality=pb.MODALITY_AUDIO, source=pb.SourceInfo(audio=pb.AudioSource())),
}


@pytest.mark.parametrize(
    ("kind", "cells"),
    [
        ("patches", ["JPEG", "640x480", "96x64", "1,4,6", "6"]),
        ("tiles", ["JPEG", "640x480", "1,256"]),
        ("generic", ["JPEG", "640x480"]),
        ("sound", []),
    ],
)
def test_the_table_shows_what_is_known_of_an_item(kind: str, cells: list[str]) -> None:
    lines = table(pb.Header(items=[ITEMS[kind]]), pb.Report()).splitlines()
    (line,) = (line for line in lines if line.split()[:1] == ["a"])
    assert line.split()[1:] == cells


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("patches", ((640, 480), [96, 64], [1, 4, 6], 6)),
        ("tiles", ((640, 480), None, None, 1256)),
        ("generic", ((640, 480), None, None, None)),
        ("sound", (None, None, None, None)),
    ],
)
def test_json_has_null_for_what_is_not_known(kind: str, expected: tuple[object, ...]) -> None:
    (item,) = summary(pb.Header(items=[ITEMS[kind]]), pb.Report())["items"]
    assert tuple(item[name] for name in ("source_size_px", "size_px", "grid_thw", "token_count")) == expected
