"""The path for every model that no fast family knows: transformers' own processor makes the tensors.

`loading` a model's files → `model` · `prepare` a request's whole story, by `arguments` of the caller's (`argument_limits` of what
they can allocate), `prompt`, `media`, the `call` of the `processor`, and `tensors` that it returns · `spans` tokens of an image ·
`torchvision`, `fonts` and `releases` for loading.
"""

from preprocessor.models.generic.loading import load_generic
from preprocessor.models.generic.model import GenericModel
from preprocessor.models.generic.prepare import prepare_generic

__all__ = ["GenericModel", "load_generic", "prepare_generic"]
