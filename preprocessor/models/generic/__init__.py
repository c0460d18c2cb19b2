"""The path for every model that no fast family knows: transformers' own processor runs, its own tensors leave."""

from preprocessor.models.generic.model import GenericModel, load_generic
from preprocessor.models.generic.prepare import GenericItem, GenericPrepared, prepare_generic

__all__ = ["GenericItem", "GenericModel", "GenericPrepared", "load_generic", "prepare_generic"]
