"""The path for every model that no fast family knows: transformers' own processor makes the tensors."""

from preprocessor.models.generic.loading import load_generic
from preprocessor.models.generic.model import GenericModel
from preprocessor.models.generic.prepare import prepare_generic

__all__ = ["GenericModel", "load_generic", "prepare_generic"]
