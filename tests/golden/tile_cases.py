"""The requests that tile_goldens.json answers, for each model directory in `models`."""

from __future__ import annotations

import contextlib
from pathlib import Path

from preprocessor.models.family import Model
from preprocessor.types.request import Modality, PreparationRequest
from tests.golden.cases import ask, image_case, mixed_chat, video_case

# Where torchvision is installed without its operators, transformers can import it after this alone; Gemma 4's settings need it.
with contextlib.suppress(ImportError):
    import tests.golden.huggingface  # noqa: F401

MODELS = Path(__file__).parent / "models"
TILE_GOLDENS = Path(__file__).parent / "tile_goldens.json"

# Model → a most pixel count for which its processor makes something else than by itself.
BUDGETS = {"internvl": 500_000, "mistral3": 100_000, "gemma3": 4 * 896**2, "gemma4": 350_000}


def requests(model: Model) -> dict[str, PreparationRequest]:
    """Case name → request, of what the model takes."""
    most = BUDGETS[Path(model.name).name]
    several = ask(
        image_case("odd-333x207.jpg", "a"),
        image_case("alpha-200x150.webp", "b"),
        image_case("rotated-400x250.jpg", "c"),
    )
    asked = {
        "image of odd size": ask(image_case("odd-333x207.jpg")),
        "tall image with a palette": ask(image_case("tall-57x611.png")),
        "three images of different sizes": several,
        "image with a budget": ask(image_case("tall-57x611.png", max_pixels=most)),
        "text alone": ask(text="Just words.\n\n  And    spaces; 3.14159"),
    }
    if Modality.VIDEO not in model.modalities:
        return asked
    own = "tiny-48x32.mp4" if model.video.frame_count is None else "shapes-374.mp4"  # every frame, or a number of them
    return asked | {
        "video at 1 fps": ask(video_case("shapes-374.mp4", fps=1)),
        "three frames of a 720p video": ask(video_case("shapes-720p.mp4", frame_count=3)),
        "named frames": ask(video_case("ntsc-vp9.webm", indices=(0, 7, 31))),
        "video by the model's own sampling": ask(video_case(own)),
        "images and a video in one chat": mixed_chat(),
    }


def model_directories() -> list[str]:
    return [str(directory) for directory in sorted(MODELS.iterdir())]
