"""Tables for RESULTS.md from the lines of a run: `python -m tests.bench.device.vllm.report figures/vllm.jsonl`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from tests.bench.device.vllm import plan

Point = Mapping[str, Any]
_ORDER = (
    plan.SERVE_1,
    plan.SERVE_8,
    plan.OURS_BYTES,
    plan.OURS_SHARED,
    plan.TRITON_PIECES,
    plan.TRITON_SHARED,
    plan.BOUND_BYTES,
    plan.BOUND_SHARED,
)


def read_points(path: Path) -> list[Point]:
    """The cells that were measured; the last one counts where a cell was measured again."""
    found: dict[tuple[Any, ...], Point] = {}
    for line in path.read_text().splitlines():
        point = json.loads(line)
        if "requests_a_second" in point:
            found[tuple(point[name] for name in ("system", "fps", "max_tokens", "callers"))] = point
    return list(found.values())


def read_chats(path: Path) -> list[Point]:
    """The chats that were measured."""
    return [point for line in path.read_text().splitlines() if "turn_core_seconds" in (point := json.loads(line))]


def chats_table(chats: Sequence[Point]) -> str:
    """Of each system: its first turn, and the median of the later ones, of all chats."""
    lines = [
        "| | first turn: first token, s | core-seconds | later turns: first token, s | core-seconds |",
        "|---|" + "--:|" * 4,
    ]
    for chat in sorted(chats, key=lambda chat: (chat["fps"], _ORDER.index(chat["turns_of"]))):
        cells = [
            f"{median(turns[turn] for turns in chat[name] for turn in of_a_turn):.3f}"
            for of_a_turn in ([0], range(1, len(chat["turn_core_seconds"][0])))
            for name in ("turn_first_token_seconds", "turn_core_seconds")
        ]
        lines.append(f"| {chat['turns_of']}, {chat['fps']:g} fps | {' | '.join(cells)} |")
    return "\n".join(lines)


def report(points: Sequence[Point]) -> str:
    """All tables and what became of the goals."""
    parts = [
        _table(points, "Requests a second (GPU busy)", _rate),
        _table(points, "Time to the first token, s: median, 95th percentile", _first_token),
        _table(points, "Core-seconds of all serving processes a request", _cores),
        "Goals\n\n" + "\n".join(f"- {line}" for line in goals(points)),
    ]
    return "\n\n".join(parts) + "\n"


def goals(points: Sequence[Point]) -> Iterator[str]:
    """One line for each goal that the figures tell something about, and one for a comparison that is none."""
    for fps in sorted({point["fps"] for point in points}):
        lengths = {point["prompt_tokens"] for point in points if point["fps"] == fps and point["answered"]}
        if len(lengths) > 1:
            yield f"{fps:g} fps: the systems' prompts differ: they have {sorted(lengths)} tokens"

    def value(system: str, fps: float, callers: int, name: str) -> float | None:
        for point in points:
            if (point["system"], point["fps"], point["callers"], point["max_tokens"]) == (system, fps, callers, 1):
                found: float | None = point[name]
                return found
        return None

    def of_bounds(fps: float, callers: int, name: str) -> list[float]:
        """The engine alone, by bytes and by shared memory: what it can do is the better of both."""
        return [found for bound in (plan.BOUND_SHARED, plan.BOUND_BYTES) if (found := value(bound, fps, callers, name))]

    for ours in (plan.OURS_SHARED, plan.OURS_BYTES):
        for fps in (1, 8):
            rate = value(ours, fps, 32, "requests_a_second")
            most = max(of_bounds(fps, 32, "requests_a_second"), default=None)
            if rate and most:
                yield f"{ours}, {fps:g} fps, 32 callers: {rate / most:.0%} of the better bound (goal 95 %)"
            if busy := value(ours, fps, 32, "gpu_busy"):
                yield f"{ours}, {fps:g} fps, 32 callers: GPU busy {busy:.0%} (goal 90 %)"
            cost, theirs = (value(system, fps, 32, "core_seconds_a_request") for system in (ours, plan.SERVE_8))
            if cost and theirs:
                yield f"{ours}, {fps:g} fps, 32 callers: {cost / theirs:.2f} of serve's core-seconds (goal 0.6)"
        rate, theirs = (value(system, 1, 32, "requests_a_second") for system in (ours, plan.SERVE_8))
        if rate and theirs:
            yield f"{ours}, 1 fps, 32 callers: {rate / theirs:.2f} × serve with 8 API servers (goal 2)"
        if first := value(ours, 8, 1, "first_token_median_seconds"):
            yield f"{ours}, 8 fps, 1 caller: first token after {first:.2f} s (goal 0.5)"
        first = value(ours, 1, 1, "first_token_median_seconds")
        least = min(of_bounds(1, 1, "first_token_median_seconds"), default=None)
        if first and least:
            yield f"{ours}, 1 fps, 1 caller: first token {first - least:.2f} s above the engine's own (goal 0.2)"


def _table(points: Sequence[Point], title: str, show: Callable[[Point], str]) -> str:
    columns = sorted({(point["fps"], point["max_tokens"], point["callers"]) for point in points})
    heads = [
        f"{fps:g} fps, {callers} caller{'s' * (callers > 1)}" + (f", {tokens} tokens" if tokens > 1 else "")
        for fps, tokens, callers in columns
    ]
    cells = {
        (point["system"], (point["fps"], point["max_tokens"], point["callers"])): show(point)
        for point in points
        if point["answered"]
    }
    lines = [f"{title}\n", f"| | {' | '.join(heads)} |", "|---|" + "--:|" * len(columns)]
    measured = [system for system in _ORDER if any((system, column) in cells for column in columns)]
    lines += [f"| {each} | {' | '.join(cells.get((each, column), '') for column in columns)} |" for each in measured]
    return "\n".join(lines)


def _rate(point: Point) -> str:
    busy = "" if point["gpu_busy"] is None else f" ({point['gpu_busy']:.0%})"
    return f"{point['requests_a_second']:.3g}{busy}"


def _first_token(point: Point) -> str:
    return f"{point['first_token_median_seconds']:.2f}, {point['first_token_p95_seconds']:.2f}"


def _cores(point: Point) -> str:
    return f"{point['core_seconds_a_request']:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.device.vllm.report", description=__doc__)
    parser.add_argument("lines", type=Path, help="vllm.jsonl of a run")
    lines = parser.parse_args().lines
    print(report(read_points(lines)))
    print(chats_table(read_chats(lines)))


if __name__ == "__main__":
    main()
