"""Images come out as transformers makes them whichever torchvision is there: one that fits, one that does not, or none."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tiny_omni_processors import ALL_MAKERS

# What transformers 5.23 can load where torchvision is absent; all others have a part that only torchvision makes.
PILLOW_MODELS = ["gemma3", "gemma3n", "idefics3", "llava_next"]

_WITHOUT_TORCHVISION = """
import sys
from pathlib import Path
if {hidden}:
    sys.modules["torchvision"] = None
from preprocessor.errors import ModelNotFound
from preprocessor.models.generic import load_generic, prepare_generic
from tests.media import photo
from preprocessor.config import Limits
from preprocessor.types.request import *
import hashlib, json, pickle
answers = {{}}
for directory in sorted(Path(sys.argv[1]).iterdir()):
    try:
        model = load_generic(directory.name, directory)
    except ModelNotFound as error:
        answers[directory.name] = [error.reason, "torchvision" in error.message]
        continue
    if Modality.IMAGE in model.modalities:
        parts = (MediaPart("i"), TextPart("What?"))
        request = PreparationRequest(
            ChatPrompt((Message("user", parts),)), (Media("i", Modality.IMAGE, photo(90, 60, "PNG")),)
        )
        pickled = pickle.dumps(model)
        Path(sys.argv[2], directory.name).write_bytes(pickled)
        ours = prepare_generic(pickle.loads(pickled), request, Limits())
        from transformers import AutoProcessor
        from transformers.image_utils import load_image
        from PIL import Image
        import io
        processor = AutoProcessor.from_pretrained(directory)
        picture = Image.open(io.BytesIO(photo(90, 60, "PNG"))).convert("RGB")
        content = [{{"type": "image", "image": picture}}, {{"type": "text", "text": "What?"}}]
        theirs = processor.apply_chat_template([{{"role": "user", "content": content}}],
            chat_template=processor.chat_template or processor.tokenizer.chat_template,
            tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True)
        equal = all(ours.tensors[name].tobytes() == theirs[name].numpy().tobytes() for name in theirs if name != "input_ids")
        ids = ours.token_ids.tolist() == theirs["input_ids"][0].tolist()
        answers[directory.name] = [type(model.processor.image_processor).__name__.endswith("Pil"), equal and ids]
print(json.dumps(answers))
"""

_UNPICKLE = """
import pickle, sys
from pathlib import Path
model = pickle.loads(Path(sys.argv[1]).read_bytes())
print(type(model.processor.image_processor).__name__)
"""


_LOAD = """
import sys
from preprocessor.models.registry import load_model
print(load_model(sys.argv[1]).describe().family)
"""


def run(script: str, *arguments: Path) -> str:
    """What a fresh interpreter prints last: one that the oracle's trick has not touched."""
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[3],
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1] if done.stdout else ""


@pytest.fixture(scope="module")
def pickles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for every model that a test has loaded, pickled."""
    return tmp_path_factory.mktemp("pickles")


@pytest.fixture(scope="module")
def answers(models: Path, pickles: Path) -> dict[str, list[object]]:
    """What became of each model where a torchvision can be imported."""
    made: dict[str, list[object]] = json.loads(run(_WITHOUT_TORCHVISION.format(hidden=False), models, pickles))
    return made


def test_a_torchvision_for_another_torch_serves_every_model(answers: dict[str, list[object]]) -> None:
    """The package index's build beside CPU torch: its compiled operators cannot be loaded, and nothing calls them."""
    assert answers == {name: [False, True] for name in set(ALL_MAKERS) - {"qwen2_audio"}}


def test_images_need_no_torchvision(models: Path, tmp_path: Path) -> None:
    answers = json.loads(run(_WITHOUT_TORCHVISION.format(hidden=True), models, tmp_path))
    assert {name: answers[name] for name in PILLOW_MODELS} == {name: [True, True] for name in PILLOW_MODELS}
    others = set(ALL_MAKERS) - set(PILLOW_MODELS) - {"qwen2_audio"}
    assert {name: answers[name] for name in others} == {name: ["UNSUPPORTED_MODEL", True] for name in others}


@pytest.mark.usefixtures("answers")
def test_a_pickled_model_wakes_in_a_process_that_has_not_imported_torchvision(pickles: Path) -> None:
    assert run(_UNPICKLE, pickles / "gemma3") == "Gemma3ImageProcessor"


def test_a_model_of_a_family_whose_configuration_imports_torchvision_is_loaded() -> None:
    assert run(_LOAD, Path("tests/golden/models/gemma4")) == "gemma4"
