"""Images, beside Pillow and Hugging Face's processor."""

from __future__ import annotations

import sys
from functools import partial

from preprocessor.traffic.seed import TEXT
from preprocessor.v1 import preprocessor_pb2 as pb
from tests.bench import goals
from tests.bench.apart import timed_apart
from tests.bench.clips import SERVICE, path_figures
from tests.bench.contest import ratio, run_in_turn
from tests.bench.image_paths import IMAGE_PATHS, compare_image_paths, make_image_job
from tests.bench.memory import peak_bytes
from tests.bench.options import Bench
from tests.bench.section import Section, Table
from tests.bench.service_path import ServicePath
from tests.bench.workloads import PICTURES, data_of

_REQUESTS_A_SAMPLE = 5


def images(bench: Bench) -> Section:
    """A large photo, and many small ones."""
    section = Section(
        "Images",
        "CPU / wall, ms; pixels compared bit for bit first. `pil + hf`: Pillow, then Hugging Face's image processor, pixels "
        "alone; `hf`: end to end, `AutoProcessor` on the files and the prompt, as `ours`.",
    )
    names = [*IMAGE_PATHS, SERVICE]
    section.tables.append(Table(("", *names, "hf ÷ ours", "pil + hf ÷ ours")))
    memory = Table(("peak memory, MB", *names))
    with ServicePath() as service:
        for pictures in PICTURES:
            print(f"  {pictures.name}", file=sys.stderr)
            files = data_of(pictures)
            job = make_image_job(bench.model, files, TEXT)
            compare_image_paths(job)
            spec, sent = image_spec(len(files)), {f"photo {index}": data for index, data in enumerate(files)}
            with timed_apart({name: partial(path, job) for name, path in IMAGE_PATHS.items()}) as runners:
                runners[SERVICE] = service.runner(bench.model, spec, sent, _REQUESTS_A_SAMPLE)
                timed = run_in_turn(runners, 3 * bench.options.rounds)
            peaks: dict[str, int | None] = {}
            if bench.options.has_memory:
                peaks = {name: peak_bytes(name, files, None, TEXT) for name in IMAGE_PATHS}
                peaks[SERVICE] = service.peak_pss_bytes(spec, sent)
                memory.rows.append([pictures.name, *(f"{(peaks[name] or 0) / 1e6:.0f}" for name in names)])
            found, alone = ratio(timed, "hf", "ours"), ratio(timed, "pil + hf", "ours")
            assert found is not None
            assert alone is not None
            cells = [f"{timed[name].cpu_ms:.1f} / {timed[name].wall_ms:.1f}" for name in names]
            section.add(
                [pictures.name, *cells, *(f"{one[1]:.2f} / {one[0]:.2f}" for one in (found, alone))],
                pictures=pictures.name,
                paths={name: path_figures(one, peaks.get(name)) for name, one in timed.items()},
            )
            section.check(f"hf ÷ ours, CPU, {pictures.name}", found[1], "≥", goals.HF_TO_OURS_ON_IMAGES)
    if memory.rows:
        section.tables.append(memory)
    return section


def image_spec(count: int) -> pb.PrepareSpec:
    """The request of `image_paths.make_image_job`, as a message."""
    keys = [f"photo {index}" for index in range(count)]
    media = [pb.Media(key=key, modality=pb.MODALITY_IMAGE, chunked=pb.Chunked()) for key in keys]
    message = pb.Message(role="user", parts=[*(pb.Part(media_key=key) for key in keys), pb.Part(text=TEXT)])
    return pb.PrepareSpec(chat=pb.ChatPrompt(messages=[message]), media=media)
