"""Models of a known family: planned from headers alone by their family's rules, pixels written a frame at a time."""

from preprocessor.models.family.configuration import Configuration
from preprocessor.models.family.model import Model
from preprocessor.models.family.rules import Family, ItemLayout, ModelSettings

__all__ = ["Configuration", "Family", "ItemLayout", "Model", "ModelSettings"]
