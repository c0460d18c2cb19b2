"""Prepares prompts of models in sandboxed processes: `python -m tests.unit.workers.sandboxed NAME...`, names of the registry.

Each prompt is that of a worker's first task: its process is forked from one that has loaded ahead what tasks need, and nothing
has come before. Prints a line for each: the name, the modality, the pixel form, and how its process ended; tab-separated.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable

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
# Of sides that no family's patches or tiles divide, so that each is resized.
MEDIA = (Media("a", Modality.IMAGE, photo(601, 403)), Media("a", Modality.VIDEO, moving_shapes_clip(1, 4, 326, 242)))
_LIMITS = WorkerLimits(memory_bytes=4 << 30, niceness=0, is_isolation_required=True)


def main() -> None:
    use_one_thread()
    for name in sys.argv[1:]:
        model = load_model(name)
        if end := _end_of(lambda model=model, name=name: _prepare_all(model, name)):  # type: ignore[misc]
            sys.exit(f"{name}: nothing was prepared ({end})")


def _prepare_all(model: LoadedModel, name: str) -> None:
    load_ahead(model)
    for medium in MEDIA:
        if medium.modality in model.modalities:
            for form in FORMS:
                end = _end_of(lambda medium=medium, form=form: _prepare(model, medium, form))  # type: ignore[misc]
                print(name, medium.modality.name, form.value, end, sep="\t", flush=True)


def _prepare(model: LoadedModel, medium: Media, form: PixelForm) -> None:
    enter_sandbox(_LIMITS)
    prompt = ChatPrompt((Message("user", (MediaPart("a"),)),))
    pipeline.prepare(model, PreparationRequest(prompt, (medium,), form), Limits())


def _end_of(work: Callable[[], None]) -> int:
    """How a process ends that does this: 0, 1 after an error, or the number of a signal, negative."""
    process_id = os.fork()
    if process_id:
        return os.waitstatus_to_exitcode(os.waitpid(process_id, 0)[1])
    try:
        work()
        os._exit(0)
    except BaseException:  # the process ends here, whatever it is
        traceback.print_exc()
        os._exit(1)


if __name__ == "__main__":
    main()
