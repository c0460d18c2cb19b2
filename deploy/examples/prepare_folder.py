"""Prepare every clip of a folder, with a progress bar. Started again, it goes on where it was stopped.

python prepare_folder.py ADDRESS CLIPS RESULTS "What happens?"

Of CLIPS/a/b.mp4 the tensors are written to RESULTS/a/b.mp4.safetensors, or why it was refused to RESULTS/a/b.mp4.error.
"""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from safetensors.numpy import save_file
from tqdm import tqdm

from preprocessor.client import CallFailed, Client, chat, video

AT_ONCE = 8
SUFFIXES = {".mp4", ".mkv", ".mov", ".webm"}


def main(address: str, clips: str, results: str, question: str) -> None:
    paths = [path for path in sorted(Path(clips).rglob("*")) if path.suffix.lower() in SUFFIXES]
    jobs = [(path, Path(results) / path.relative_to(clips)) for path in paths]
    jobs = [job for job in jobs if not any(named(job[1], suffix).exists() for suffix in ("safetensors", "error"))]

    def prepare(job: tuple[Path, Path]) -> None:
        path, result = job
        result.parent.mkdir(parents=True, exist_ok=True)
        prompt = chat([{"role": "user", "content": [video(path, fps=2), question]}])
        try:
            tensors = client.prepare(prompt, timeout_seconds=600).tensors
        except CallFailed as error:
            if error.retry_after_seconds is not None or not error.reason:
                raise  # the service has no room, or is not there: that says nothing of the clip
            named(result, "error").write_text(f"{error.reason}: {error.message}\n")
        else:
            save_file(tensors, named(result, "part"))
            named(result, "part").rename(named(result, "safetensors"))  # so that it is there whole or not at all

    with Client(address) as client, ThreadPoolExecutor(AT_ONCE) as pool:
        for _ in tqdm(pool.map(prepare, jobs), total=len(jobs), unit="clip"):
            pass


def named(result: Path, suffix: str) -> Path:
    return result.with_name(f"{result.name}.{suffix}")


if __name__ == "__main__":
    main(*sys.argv[1:])
