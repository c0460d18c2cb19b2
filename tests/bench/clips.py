"""Videos: the seed workload at every rate, and clips that are otherwise."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from preprocessor.traffic.seed import TEXT
from preprocessor.v1 import preprocessor_pb2 as pb
from tests.bench import goals
from tests.bench.apart import timed_apart
from tests.bench.compare import Comparison, compare_paths
from tests.bench.contest import Timed, ratio, run_in_turn
from tests.bench.memory import peak_bytes
from tests.bench.options import Bench
from tests.bench.paths import PATHS, make_job
from tests.bench.section import Section, Table
from tests.bench.service_path import ServicePath
from tests.bench.workloads import CLIPS, SEED, Clip, data_of

SERVICE = "ours, service"
RATIOS = (
    ("before", "ours"),
    ("seed", "ours"),
    ("hf", "ours"),
    ("ours", "bound"),
    (SERVICE, "ours"),
    ("seed", "ours FP32"),
)
_REQUESTS_A_SAMPLE = 3

_NOTES = """\
- Every path starts from the file in memory (`hf`: on disk) and ends in the pixel rows. `before`, `seed` and `hf` end in
  normalized float32; `ours` ends in uint8, which the engine normalizes on the GPU: a quarter of the bytes, the same information;
  `ours FP32` ends in the float32 of `seed`, bit for bit.
- `ours`, `hf` and the service render the template and tokenize as well. `before` and `seed` only make pixels and are given the
  frame indices, `bound` the timestamps.
- `bound` decodes what has to be decoded, converts none of it, and writes as many bytes as `ours`.
- The service is asked over loopback; its whole tree of processes is counted.
- Each path runs in a process of its own. Ours, and the bound, keep memory that was freed, as a worker does (`workers.heap`).
- Loading the model and building processors is not timed, nor is freeing a result.
- Memory: the peak of one request in a process of its own, beyond what lay there before. Of the service: the whole tree of
  processes, all included."""


@dataclass(frozen=True, slots=True)
class Race:
    """All paths on one clip at one rate."""

    clip: Clip
    fps: float
    frame_count: int
    output_bytes: int
    comparison: Comparison
    timed: Mapping[str, Timed]
    peaks: Mapping[str, int | None]

    def ratio(self, over: str, under: str) -> tuple[float, float] | None:
        return ratio(self.timed, over, under)

    def figures(self) -> dict[str, Any]:
        """For the JSON report."""
        return {
            "clip": self.clip.name,
            "fps": self.fps,
            "frame_count": self.frame_count,
            "output_bytes": self.output_bytes,
            "before_off": dict(self.comparison.before_off),
            "cannot": dict(self.comparison.cannot),
            "paths": {name: path_figures(timed, self.peaks.get(name)) for name, timed in self.timed.items()},
            "ratios": {
                f"{over} ÷ {under}": {"wall": found[0], "cpu": found[1]}
                for over, under in RATIOS
                if (found := self.ratio(over, under)) is not None
            },
        }


def workload(bench: Bench) -> Section:
    """The seed workload at every rate: time, ratios, memory."""
    section = Section(f"The workload: {SEED.name}, and 50 tokens of text", _NOTES)
    with ServicePath() as service:
        races = [race(bench, service, SEED, fps) for fps in bench.options.fps]
    head = tuple(f"{one.fps:g} fps" for one in races)
    sizes = [f"{one.frame_count}; {one.output_bytes / 1e6:.0f}" for one in races]
    names = [*PATHS, SERVICE]
    times = [["frames; MB of uint8", *sizes]] + [[name, *(_time(one, name) for one in races)] for name in names]
    ratios = [[f"{over} ÷ {under}", *(_ratio(one, over, under) for one in races)] for over, under in RATIOS]
    ratios += [
        [f"· wished: {name}", *(f"{wish[o.fps]:g}" if o.fps in wish else "" for o in races)]
        for name, wish in goals.WISHED.items()
    ]
    section.tables.append(Table(("CPU / wall, ms", *head), times))
    section.tables.append(Table(("ratio of CPU / of wall", *head), ratios))
    if any(one.peaks for one in races):
        peaks = [[name, *(_megabytes(one.peaks.get(name)) for one in races)] for name in names]
        section.tables.append(Table(("peak memory, MB", *head), peaks))
    section.tables.append(_comparison_table(races))
    section.figures.extend(one.figures() for one in races)
    section.plots["stages.svg"] = "CPU of a request, stage by stage"
    section.plots["ratios.svg"] = "Ratios by frames a second, beside their goals"
    for one in races:
        _check_workload(section, one)
    return section


def clips(bench: Bench) -> Section:
    """Other codecs, sizes and lengths."""
    section = Section(
        "Other clips",
        "CPU, ms; as above. `seed` is not to be faster anywhere, and ours is to be 1.5 × faster where frames that nobody "
        "refers to, or whole groups of pictures, can be skipped. OpenCV's wheel decodes no AV1: there `hf` stands in for it.",
    )
    section.plots["clips.svg"] = "CPU of seed over ours, a bar for each clip"
    names = [*PATHS, SERVICE]
    section.tables.append(Table(("clip", "fps", *names, "seed ÷ ours", "ours ÷ bound"), label_count=2))
    with ServicePath() as service:
        for clip in CLIPS:
            for fps in clip.fps if bench.options.is_full else clip.fps[:1]:
                one = race(bench, service, clip, fps)
                rival = "seed" if "seed" in one.timed else "hf"
                found, to_bound = one.ratio(rival, "ours"), one.ratio("ours", "bound")
                assert found is not None and to_bound is not None
                cells = [f"{one.timed[name].cpu_ms:.0f}" if name in one.timed else "cannot" for name in names]
                section.add([clip.name, f"{fps:g}", *cells, f"{found[1]:.2f}", f"{to_bound[1]:.2f}"], **one.figures())
                section.check(f"{rival} ÷ ours, {clip.name}, {fps:g} fps", found[1], "≥", clip.least_seed_ratio)
    return section


def race(bench: Bench, service: ServicePath, clip: Clip, fps: float) -> Race:
    """Compare all paths, then time them in turn, then take the memory of each.

    Raises:
        Disagreement: Two of them make something else.
    """
    print(f"  {clip.name}, {fps:g} fps", file=sys.stderr)
    (data,) = data_of(clip)
    job = make_job(bench.model, data, fps, TEXT)
    comparison = compare_paths(job)
    spec, files = video_spec(fps), {"clip": data}
    names = [name for name in PATHS if name not in comparison.cannot]
    with timed_apart({name: partial(PATHS[name], job) for name in names}) as runners:
        runners[SERVICE] = service.runner(bench.model, spec, files, _REQUESTS_A_SAMPLE)
        timed = run_in_turn(runners, bench.options.rounds)
    peaks: dict[str, int | None] = {}
    if bench.options.has_memory:
        peaks = {name: peak_bytes(name, (data,), fps, TEXT) for name in names}
        peaks[SERVICE] = service.peak_pss_bytes(spec, files)
    return Race(clip, fps, len(job.indices), job.output_bytes, comparison, timed, peaks)


def video_spec(fps: float) -> pb.PrepareSpec:
    """The request of `paths.make_job`, as a message."""
    medium = pb.Media(key="clip", modality=pb.MODALITY_VIDEO, chunked=pb.Chunked(), sampling=pb.Sampling(fps=fps))
    message = pb.Message(role="user", parts=[pb.Part(media_key="clip"), pb.Part(text=TEXT)])
    return pb.PrepareSpec(chat=pb.ChatPrompt(messages=[message]), media=[medium])


def path_figures(timed: Timed, peak: int | None) -> dict[str, Any]:
    return {
        "wall_ms": [sample.wall_ms for sample in timed.samples],
        "cpu_ms": [sample.cpu_ms for sample in timed.samples],
        "median_wall_ms": timed.wall_ms,
        "median_cpu_ms": timed.cpu_ms,
        "stages_cpu_ms": timed.stages_ms,
        "peak_bytes": peak,
    }


def _check_workload(section: Section, one: Race) -> None:
    at = f"{one.fps:g} fps"
    for over, under, sign, goal in (
        ("before", "ours", "≥", goals.BEFORE_TO_OURS),
        ("seed", "ours", "≥", goals.SEED_TO_OURS),
        ("ours", "bound", "≤", goals.OURS_TO_BOUND),
    ):
        found = one.ratio(over, under)
        if found is not None and one.fps in goal:
            section.check(f"{over} ÷ {under}, CPU, {at}", found[1], sign, goal[one.fps])
            section.check(f"{over} ÷ {under}, wall, {at}", found[0], sign, goal[one.fps])
    served = one.timed[SERVICE].cpu_ms
    section.check(f"service ÷ ours, CPU, {at}", served / one.timed["ours"].cpu_ms, "≤", goals.SERVICE_TO_PIPELINE)
    if one.fps in goals.RENDER_SERVER_CPU_MS:
        rival = goals.RENDER_SERVER_CPU_MS[one.fps]
        section.check(
            f"service ÷ vLLM's render server (measured apart), CPU, {at}",
            served / rival,
            "≤",
            goals.RENDER_SERVER_SHARE,
        )


def _comparison_table(races: list[Race]) -> Table:
    rows = [
        [f"{one.fps:g} fps", *(f"{value:.2g}" for value in one.comparison.before_off.values())]
        for one in races
        if one.comparison.before_off
    ]
    head = ("`before` is off `seed` by, in uint8 levels", "on average", "at most", "share over one")
    return Table(head, rows, title="Compared before timing: frames and grids are equal, pixels equal bit for bit.")


def _time(one: Race, name: str) -> str:
    return f"{one.timed[name].cpu_ms:.0f} / {one.timed[name].wall_ms:.0f}" if name in one.timed else "cannot"


def _ratio(one: Race, over: str, under: str) -> str:
    found = one.ratio(over, under)
    return "" if found is None else f"{found[1]:.2f} / {found[0]:.2f}"


def _megabytes(size: int | None) -> str:
    return "" if size is None else f"{size / 1e6:.0f}"
