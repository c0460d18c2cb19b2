"""The process that forks workers for a model. It takes seconds to start, so the tests of a session share it."""

from __future__ import annotations

from preprocessor.models.family import Model
from preprocessor.models.generic import GenericModel
from preprocessor.workers.process import Zygote

_zygotes: dict[Model | GenericModel | None, Zygote] = {}


async def zygote_of(model: Model | GenericModel | None) -> Zygote:
    """None is for work that needs no model."""
    zygote = _zygotes.get(model)
    if zygote is None or zygote.lost.is_set():
        zygote = _zygotes[model] = Zygote(model)  # type: ignore[arg-type]
        await zygote.start()
    return zygote


def close_zygotes() -> None:
    for zygote in _zygotes.values():
        zygote.close()
