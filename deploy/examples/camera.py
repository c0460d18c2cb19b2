"""Describe what a camera shows, every few seconds: the last frames go to the service as they are, with their times.

python camera.py ADDRESS SOURCE          # of cv2.VideoCapture: 0, a file, rtsp://…
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np

from preprocessor.client import Client, chat, video

WINDOW_SECONDS = 4.0
FRAMES_PER_SECOND = 2.0

Frame = np.ndarray[Any, np.dtype[np.uint8]]


def main(address: str, source: str) -> None:
    with Client(address) as client:
        for frames, times in windows(source):
            # Times within the window: the model is to see seconds 0 to 4, however long the camera has been on.
            seen = video(frames=frames, times_seconds=[time - times[0] for time in times], key="camera")
            prompt = chat([{"role": "user", "content": [seen, "Describe in one sentence what happens."]}])
            with client.generate(prompt, max_tokens=32, timeout_seconds=60) as answer:
                print(f"{times[0]:.1f} to {times[-1]:.1f} s: {answer.read()}", flush=True)


def windows(source: str) -> Iterator[tuple[list[Frame], list[float]]]:
    """Frames, uint8 RGB [height, width, 3], and their times in seconds, a window at a time."""
    capture = cv2.VideoCapture(int(source) if source.isdigit() else source)
    frames: list[Frame] = []
    times: list[float] = []
    while capture.grab():  # each frame is taken from the camera, few are decoded
        time = capture.get(cv2.CAP_PROP_POS_MSEC) / 1000
        if times and time - times[0] >= WINDOW_SECONDS:
            yield frames, times
            frames, times = [], []
        if not times or time - times[-1] >= 1 / FRAMES_PER_SECOND:
            is_there, picture = capture.retrieve()
            if is_there:
                frames.append(np.asarray(cv2.cvtColor(picture, cv2.COLOR_BGR2RGB), np.uint8))
                times.append(time)
    if frames:
        yield frames, times


if __name__ == "__main__":
    main(*sys.argv[1:])
