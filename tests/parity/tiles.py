"""Random requests for the families of `tests.golden.tile_oracle`, compared as `compare` does. From the repository's root:

python -m tests.parity.tiles [--models internvl] [--case 17]      # make parity runs it, too
"""

from __future__ import annotations

import argparse
import dataclasses
import faulthandler
import sys
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache
from multiprocessing import get_context

import numpy as np
import torch

from preprocessor.models.family import Model
from preprocessor.pipeline import prepare
from preprocessor.types.request import Media, Modality, PixelForm, PreparationRequest, Sampling
from tests import media
from tests.golden import tile_oracle
from tests.golden.tile_cases import MODELS
from tests.loading import load_family_model
from tests.parity.cases import ENCODERS, RATES, SEED, Random, random_chat, random_photo, random_sampling, random_side
from tests.parity.compare import bits_of, difference, pixels_in_form

VIDEO_KINDS = tuple(("video", way) for way in ("default", "fps", "frame count", "indices", "every frame"))
IMAGE_KINDS = (("image", "one"), ("image", "several"), ("image", "4K"), ("image", "thin"), ("text", "none"))
KINDS = (*VIDEO_KINDS, *IMAGE_KINDS, ("mixed", "any"))
# Model → the area of what its budget counts, px, where the caller may give a least and a most one.
BUDGETS: dict[str, tuple[bool, int]] = {
    "internvl": (True, 448 * 448),
    "mistral3": (False, 300 * 300),
    "gemma3": (False, 896 * 896),
    "gemma4": (False, 500_000),
}
LEAST_CASES = 66
_CASE_LIMIT_SECONDS = 300


@dataclass(frozen=True, slots=True)
class Case:
    """What case `number` of a model is about."""

    model: str
    number: int
    kind: tuple[str, str]

    def __str__(self) -> str:
        return f"{self.model} {self.number}: {', '.join(self.kind)}"


@cache
def model_named(name: str) -> Model:
    return load_family_model(str(MODELS / name))


def cases_of(name: str) -> list[Case]:
    """Each kind equally often; at least `LEAST_CASES`."""
    has_video = Modality.VIDEO in model_named(name).modalities
    kinds = KINDS if has_video else IMAGE_KINDS
    return [
        Case(name, number, kinds[number % len(kinds)]) for number in range(-(-LEAST_CASES // len(kinds)) * len(kinds))
    ]


def make_request(asked: Case) -> PreparationRequest:
    random = np.random.default_rng((SEED, *asked.model.encode(), asked.number))
    budget = _budget(random, *BUDGETS[asked.model])
    what, how = asked.kind
    theme = how if how in ("4K", "thin") else "ordinary"

    def image(key: str) -> Media:
        return Media(key, Modality.IMAGE, random_photo(random, theme), Sampling(), *budget)

    def video(key: str, way: str) -> Media:
        return Media(key, Modality.VIDEO, *_clip(random, way, asked.model))

    items: list[Media] = []
    if what == "image":
        items = [image(f"i{n}") for n in range(random.integers(2, 5) if how == "several" else 1)]
    elif what == "video":
        items = [video("v", how)]
    elif what == "mixed":
        # Of one frame count: InternVL's processor joins no others.
        clips = [dataclasses.replace(video(key, "default"), sampling=Sampling(frame_count=2)) for key in "vw"]
        items = [image("i"), image("j"), *clips]
        random.shuffle(items)
    forms = [PixelForm.UINT8, PixelForm.FP32, PixelForm.BF16, PixelForm.FP16]
    return PreparationRequest(random_chat(random, items), tuple(items), pixel_form=forms[random.integers(4)])


def differences(directory: str, model: Model, request: PreparationRequest) -> list[str]:
    """One sentence for each value that differs; none where all are equal."""
    form = request.pixel_form or PixelForm.UINT8
    wanted = PreparationRequest(request.prompt, request.media, form, with_token_types=True)
    ours, theirs = prepare(model, wanted), tile_oracle.answer(directory, request)
    pairs = {
        "input_ids": (ours.tensors["input_ids"], theirs.token_ids),
        "mm_token_type_ids": (ours.tensors["mm_token_type_ids"], theirs.token_types),
        **{name: (ours.tensors.get(name), tensor) for name, tensor in theirs.tensors.items()},
    }
    if request.media:
        assert ours.plan.pixels is not None
        name = ours.plan.pixels.name
        pairs[name] = (bits_of(ours.tensors[name]), bits_of(pixels_in_form(theirs, form)))
    found = [f"{name} {told}" for name, pair in pairs.items() if (told := difference(*pair))]
    frames = [None if item.frames is None else item.frames.indices.tolist() for item in ours.plan.items]
    if frames != theirs.frame_indices:
        found.append(f"frame indices: ours {frames}, theirs {theirs.frame_indices}")
    return found


def run_case(asked: Case) -> list[str]:
    torch.set_num_threads(1)
    faulthandler.dump_traceback_later(_CASE_LIMIT_SECONDS, exit=True)
    try:
        return differences(str(MODELS / asked.model), model_named(asked.model), make_request(asked))
    except Exception as error:
        return [f"raised {type(error).__name__}: {error}"]
    finally:
        faulthandler.cancel_dump_traceback_later()


def _budget(random: Random, has_least: bool, area: int) -> tuple[int | None, int | None]:
    """Half the time the model's own; the most is never below one tile, which is refused."""
    if random.random() < 0.5:
        return None, None
    low, high = sorted(random.uniform(0.5, 9, 2).tolist())
    return int(low * area) if has_least else None, int(max(high, 1) * area)


def _clip(random: Random, way: str, model: str) -> tuple[bytes, Sampling]:
    """A clip, and a wish that Hugging Face does not refuse."""
    width, height = random_side(random, 64, 700), random_side(random, 64, 700)
    plain = [encoder for encoder in ENCODERS if encoder[1] not in ("matroska", "gif")]
    codec, container, pixel_format, options = plain[random.integers(len(plain))]
    processor = tile_oracle.processor_in(str(MODELS / model)).video_processor
    least = processor.num_frames or 2
    count, rate = int(random.integers(least, least + 23)), RATES[random.integers(len(RATES))]
    data = media.moving_shapes_clip(
        count / rate,
        rate,
        width,
        height,
        codec,
        container,
        seed=int(random.integers(1000)),
        options=options,
        pixel_format=pixel_format,
    )
    for _ in range(100):
        wish = random_sampling(random, way, count)
        try:
            if len(tile_oracle.chosen_indices(processor, count, float(rate), wish)):
                return data, wish
        except (ValueError, ZeroDivisionError):
            continue
    raise AssertionError("Hugging Face refuses whatever is drawn")


def run_all(names: Sequence[str], jobs: int) -> dict[Case, list[str]]:
    cases = [case for name in names for case in cases_of(name)]
    found: dict[Case, list[str]] = {}
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        for case, told in zip(cases, pool.map(run_case, cases), strict=True):
            found[case] = told
            for line in told:
                print(f"{case}\n  {line}", file=sys.stderr, flush=True)
    return found


def table(found: dict[Case, list[str]]) -> str:
    """Kinds × models: equal cases, of how many where some differ."""
    names = list(dict.fromkeys(case.model for case in found))
    counts = Counter((case.kind, case.model) for case in found)
    equal = Counter((case.kind, case.model) for case, told in found.items() if not told)
    lines = [f"| media | kind | {' | '.join(names)} |", "|---|---|" + "--:|" * len(names)]
    for kind in KINDS:
        cells = [str(n) if equal[kind, m] == (n := counts[kind, m]) else f"**{equal[kind, m]} of {n}**" for m in names]
        lines.append(f"| {kind[0]} | {kind[1].replace('none', '–')} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", f"{equal.total()} of {counts.total()} cases equal in every value."])


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.parity.tiles", description="Compare with Hugging Face, live."
    )
    parser.add_argument("--models", nargs="+", choices=list(BUDGETS), default=list(BUDGETS))
    parser.add_argument("--case", type=int, metavar="N", help="run case N of the first model alone")
    parser.add_argument("--jobs", type=int, default=2, metavar="COUNT", help="processes")
    options = parser.parse_args()
    if options.case is not None:
        case = cases_of(options.models[0])[options.case]
        print(case, make_request(case))
        told = run_case(case)
        print("\n".join(told) or "equal in every value")
        return bool(told)
    found = run_all(options.models, options.jobs)
    print(table(found))
    return any(found.values())


if __name__ == "__main__":
    sys.exit(main())
