"""Where the processes of vLLM spend their time under load: samples of their Python stacks, by py-spy."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

_RATE = 100  # samples a second
_SHOWN = 25


async def sample(py_spy: str, processes: Mapping[str, int], seconds: int, out: Path) -> dict[str, str]:
    """Sample them side by side for so long; writes OUT/stacks-NAME.txt, one folded stack and its count a line.

    Args:
        processes: Name → process id.
    Returns:
        Name → a summary, or why there is none.
    """
    paths = {name: out / f"stacks-{name}.txt" for name in processes}
    runs = [
        asyncio.create_subprocess_exec(
            *(py_spy, "record", "--pid", str(pid), "--duration", str(seconds), "--rate", str(_RATE)),
            *("--nonblocking", "--threads", "--format", "raw", "--output", str(paths[name])),
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
        )
        for name, pid in processes.items()
    ]
    started = await asyncio.gather(*runs)
    ends = await asyncio.gather(*(run.communicate() for run in started))
    return {
        name: summary(path.read_text(errors="replace"))
        if path.exists()
        else f"py-spy ended with {run.returncode}: {stderr.decode(errors='replace')[-500:]}"
        for (name, path), run, (_, stderr) in zip(paths.items(), started, ends, strict=True)
    }


def summary(folded: str) -> str:
    """The busiest threads, and for each the functions in which most of its samples end.

    Args:
        folded: Lines of `thread;outer;…;inner COUNT`; only threads that were running are sampled.
    """
    threads: dict[str, Counter[str]] = {}
    for line in folded.splitlines():
        stack, _, count = line.rpartition(" ")
        thread, *frames = stack.split(";")
        if count.isdecimal() and frames:
            threads.setdefault(thread, Counter())[frames[-1]] += int(count)
    total = sum(counts.total() for counts in threads.values()) or 1
    lines = []
    for thread, counts in sorted(threads.items(), key=lambda each: -each[1].total()):
        lines.append(f"{counts.total() / total:6.1%}  {thread}")
        lines += [f"        {count / total:6.1%}  {frame}" for frame, count in counts.most_common(_SHOWN)]
    return "\n".join(lines)
