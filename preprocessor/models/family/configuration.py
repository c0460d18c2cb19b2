"""A model's own files as a family reads them, and its placeholder tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from transformers.tokenization_utils_tokenizers import TokenizersBackend

from preprocessor.errors import ModelNotFound
from preprocessor.text.placeholders import Placeholders
from preprocessor.types.request import Modality


@dataclass(frozen=True, slots=True, eq=False)
class Configuration:
    """What a model's files say.

    Attributes:
        name: As the user gave it.
        config: config.json.
        image, video: The settings of the image and the video processor. "processor" in either holds `processor`.
        processor: The settings of the processor around them (processor_config.json); empty where there is no such file.
    """

    name: str
    config: Mapping[str, Any]
    image: Mapping[str, Any]
    video: Mapping[str, Any]
    processor: Mapping[str, Any]
    tokenizer: TokenizersBackend = field(repr=False)

    def token_named(self, attribute: str, default: str) -> str:
        """The token that the tokenizer has under this name, such as `boi_token`.

        Raises:
            ModelNotFound: `BAD_MODEL_DIRECTORY` where it is no token of the tokenizer.
        """
        token = str(getattr(self.tokenizer, attribute, None) or default)
        self.id_of(token)
        return token

    def id_of(self, token: str) -> int:
        """Raises: `ModelNotFound`, `BAD_MODEL_DIRECTORY`, where it is no token of the tokenizer."""
        token_id: int | None = self.tokenizer.get_vocab().get(token)
        if token_id is None:
            raise ModelNotFound(
                f"{self.name}: its tokenizer has no token {token}, which its processor writes",
                reason="BAD_MODEL_DIRECTORY",
            )
        return token_id


def placeholders_by_id(configuration: Configuration, modalities: frozenset[Modality]) -> Placeholders:
    """The tokens whose ids config.json gives as `image_token_id` and `video_token_id`, or as `image_token_index` and so on.

    Raises:
        ModelNotFound: `BAD_MODEL_DIRECTORY`.
    """
    ids: dict[Modality, int] = {}
    tokens: dict[Modality, str] = {}
    for modality in sorted(modalities):
        setting = f"{modality.name.lower()}_token_id"
        token_id = configuration.config.get(setting) or configuration.config.get(setting.replace("_id", "_index"))
        token = configuration.tokenizer.convert_ids_to_tokens(token_id) if token_id else None
        if not token_id or token is None:
            raise ModelNotFound(
                f"{configuration.name}: config.json gives {setting} {token_id}; it must be an id of the tokenizer",
                reason="BAD_MODEL_DIRECTORY",
            )
        ids[modality], tokens[modality] = int(token_id), token
    return Placeholders(tokens=tokens, ids=ids)
