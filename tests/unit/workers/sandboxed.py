"""Prepares prompts of models in sandboxed processes: `python -m tests.unit.workers.sandboxed NAME...`, by names of the registry.

Each prompt is that of a worker's first task: the process has loaded ahead what tasks need, and nothing has come before. Prints a
line for each: the name, the modality, the pixel form, and how its process ended; tab-separated.
"""

from __future__ import annotations

import os
import resource
import sys
import traceback

from preprocessor import pipeline
from preprocessor.config import Limits
from preprocessor.config.machine import use_one_thread
from preprocessor.models.loaded import LoadedModel
from preprocessor.models.registry import load_model
from preprocessor.types.request import ChatPrompt, Media, MediaPart, Message, Modality, PixelForm, PreparationRequest
from preprocessor.workers.preloading import load_ahead
from preprocessor.workers.sandbox import WorkerLimits, enter_sandbox
from tests.media import moving_shapes_clip, photo

FORMS = tuple(form for form in PixelForm if form is not PixelForm.NONE)
# Larger than every family's least and most sizes, so that each is resized.
MEDIA = (Media("a", Modality.IMAGE, photo(1600, 1200)), Media("a", Modality.VIDEO, moving_shapes_clip(2, 10, 480, 320)))


def main() -> None:
    use_one_thread()
    for name in sys.argv[1:]:
        model = load_model(name)
        for medium in MEDIA:
            for form in FORMS:
                print(name, medium.modality.name, form.value, _end_of(model, medium, form), sep="\t", flush=True)


def _end_of(model: LoadedModel, medium: Media, form: PixelForm) -> str:
    """How a process ends that prepares this: "0", or what `os.waitstatus_to_exitcode` says."""
    process_id = os.fork()
    if process_id:
        return str(os.waitstatus_to_exitcode(os.waitpid(process_id, 0)[1]))
    try:
        load_ahead(model)
        enter_sandbox(WorkerLimits(memory_bytes=resource.RLIM_INFINITY >> 2, niceness=0, is_isolation_required=True))
        prompt = ChatPrompt((Message("user", (MediaPart("a"),)),))
        pipeline.prepare(model, PreparationRequest(prompt, (medium,), form), Limits())
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(1)


if __name__ == "__main__":
    main()
