"""Models of a known family: planned from headers alone by their family's rules, pixels written a frame at a time."""

from preprocessor.models.family.model import Model
from preprocessor.models.family.rules import Family, ItemLayout, ModelSettings

__all__ = ["Family", "ItemLayout", "Model", "ModelSettings"]
