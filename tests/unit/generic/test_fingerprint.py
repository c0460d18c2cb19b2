"""A generic model names what it knows of itself; its pixel settings are its processor's own affair."""

from __future__ import annotations

from preprocessor.models.digests import digest_vocabulary
from preprocessor.models.fingerprint import CONTRACT_VERSION, fingerprint_parts
from preprocessor.models.generic import GenericModel


def test_a_generic_model_has_the_parts_that_every_model_has(loaded: dict[str, GenericModel]) -> None:
    for model in loaded.values():
        parts = fingerprint_parts(model)
        assert {name for name in parts if not name.startswith("library.")} == {
            "contract_version",
            "model",
            "preprocessing_sha256",
            "tokenizer_sha256",
        }
        assert parts["contract_version"] == CONTRACT_VERSION
        assert parts["tokenizer_sha256"] == digest_vocabulary(model.tokenizer)
        assert parts["preprocessing_sha256"] == model.fingerprint
