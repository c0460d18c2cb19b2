"""Loading a model whose type a test knows."""

from preprocessor.models.family import Model
from preprocessor.models.registry import load_model


def load_family_model(name: str) -> Model:
    """A built-in or a model directory that one of our families reads, no generic model."""
    model = load_model(name)
    assert isinstance(model, Model)
    return model
