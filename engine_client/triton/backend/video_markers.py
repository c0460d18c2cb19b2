"""Which prompt a release of transformers writes for a Qwen3-VL video, declared to those who send prompts.

A template writes vision markers around a video. transformers keeps them since 5.10, and replaced them before, together with
the video's placeholder (Qwen3VLProcessor). Engines that use its processor expect the prompt that it writes.

A Python model of Triton cannot add to its own parameters when it loads. So `config.pbtxt` declares the form, and the model
checks it then. This writes it for the transformers installed here:

    python -m engine_client.triton.backend.video_markers MODEL/config.pbtxt
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

PARAMETER = "fingerprint.video_markers"
KEEP, REPLACE = "keep", "replace"
_FIRST_THAT_KEEPS = (5, 10)


def video_markers_of(transformers_version: str) -> str:
    """What that release does with the markers around a video.

    Raises:
        ValueError: It is no version.
    """
    found = re.match(r"(\d+)\.(\d+)", transformers_version)
    if found is None:
        raise ValueError(f"{transformers_version!r} is no version of transformers, such as 5.23.0")
    return KEEP if (int(found[1]), int(found[2])) >= _FIRST_THAT_KEEPS else REPLACE


def check_video_markers(parameters: Mapping[str, str], transformers_version: str) -> str:
    """What the transformers beside a model does with the markers.

    Args:
        parameters: Of the model's `config.pbtxt`. Where they declare nothing, nothing is checked.
    Raises:
        ValueError: They declare something else.
    """
    expected, declared = video_markers_of(transformers_version), parameters.get(PARAMETER, "").strip()
    if declared not in ("", expected):
        raise ValueError(
            f"{PARAMETER} is {declared!r}; transformers {transformers_version} here is for {expected!r}. Write that, or leave "
            "it empty, and it is not compared with the prompts that come"
        )
    return expected


def declare_video_markers(config: Path, transformers_version: str) -> str:
    """Write the parameter into a `config.pbtxt` that has it.

    Raises:
        ValueError: The file does not have it.
    """
    expected = video_markers_of(transformers_version)
    place = re.compile(rf'(key: "{re.escape(PARAMETER)}"\s+value: \{{ string_value: )"[^"]*"')
    text, count = place.subn(rf'\1"{expected}"', config.read_text())
    if count != 1:
        raise ValueError(f"{config} has {count} parameters {PARAMETER}; it must have one")
    config.write_text(text)
    return expected


if __name__ == "__main__":
    print(PARAMETER, declare_video_markers(Path(sys.argv[1]), version("transformers")))
