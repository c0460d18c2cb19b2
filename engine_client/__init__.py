"""Send prepared prompts to an inference engine and stream its tokens back.

    from contextlib import aclosing
    from engine_client import EngineOptions, EngineRequest, SamplingParameters, connect_endpoints

    async with connect_endpoints("triton://engine:8001", EngineOptions("vlm_transformers")) as engine:
        request = EngineRequest(
            "request-1",
            {"input_ids": input_ids, "pixel_patches": patches, "pixel_mean": mean, "pixel_std": std,
             "grid_thw": grid_thw, "item_modality": item_modality, "item_spans": item_spans},
            SamplingParameters(max_tokens=256, temperature=0.7, seed=1),
        )
        async with aclosing(engine.generate(request, timeout_seconds=60)) as steps:
            async for step in steps:             # leaving the loop early stops the engine too
                print(step.token_ids, step.finish_reason)

Large tensors go in pieces where the engine's model takes them, also while they are still being written (`RowProgress`), and
by reference where the engine on the same host reads the memory that they lie in (`OwnedRegion`, `Transport`).

Which tensors an engine takes is the engine contract's matter; this package carries any. It knows nothing of images,
prompts or the service that makes them. `engine_client.testing.FakeEngine` stands in for an engine in tests.

Importing this package imports nothing: a name is looked up in `engine_client.public` when it is first used. So
`engine_client.contract` can be imported where gRPC and the other requirements of a client are not installed, as in an
inference server's own Python environment.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from engine_client.public import *  # noqa: F403
else:  # hidden from type checkers, to which `__getattr__` says that every name exists

    def __getattr__(name: str) -> object:
        """A public name; `__all__` is the list of them."""
        if name == "__all__" or not name.startswith("__"):  # others are the import system's, such as `__path__`
            public = import_module("engine_client.public")
            if name == "__all__" or name in public.__all__:
                return getattr(public, name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__() -> list[str]:
        return sorted(import_module("engine_client.public").__all__)
