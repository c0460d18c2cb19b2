"""Loading a model whose type a test knows."""

from preprocessor.models.family import Model
from preprocessor.models.registry import load_model
from preprocessor.models.with_sound import WithSound


def load_family_model(name: str) -> Model:
    """A built-in or a model directory that one of our families reads; of one that takes sound, the part without."""
    model = load_model(name)
    if isinstance(model, WithSound):
        return model.pictures
    assert isinstance(model, Model)
    return model
