"""Loading a model whose type a test knows, and building its tokenizer once."""

from transformers.tokenization_utils_tokenizers import TokenizersBackend

from preprocessor.models.family import Model
from preprocessor.models.registry import load_model
from preprocessor.models.with_sound import WithSound
from preprocessor.text.tokenizer import TokenTable, build_tokenizer

_built: dict[str, TokenizersBackend] = {}


def build_once(table: TokenTable) -> TokenizersBackend:
    """As `build_tokenizer`, which takes a second or two: nothing changes a tokenizer, and whoever asks next gets the same."""
    if repr(table) not in _built:
        _built[repr(table)] = build_tokenizer(table)
    return _built[repr(table)]


def load_family_model(name: str) -> Model:
    """A built-in or a model directory that one of our families reads; of one that takes sound, the part without."""
    model = load_model(name)
    if isinstance(model, WithSound):
        return model.pictures
    assert isinstance(model, Model)
    return model
