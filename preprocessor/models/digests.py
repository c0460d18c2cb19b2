"""Digests of a model's own parts: equal for what is equal, in whichever files and layout it was written."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

if TYPE_CHECKING:
    from transformers.tokenization_utils_tokenizers import TokenizersBackend

_CHILDREN = ("normalizers", "pretokenizers", "processors", "decoders")  # of a tokenizers part of type "Sequence"
_VOCABULARY_DIGESTS: WeakKeyDictionary[TokenizersBackend, tuple[int, str]] = WeakKeyDictionary()
"""Number of tokens and digest, of each tokenizer."""
_OF_THE_WRITER = ("_commit_hash", "_name_or_path", "name_or_path", "transformers_version")


def digest_files(paths: Iterable[Path]) -> str:
    """SHA-256 of names and contents, hexadecimal. Of a JSON file the values count, not the layout or who wrote it."""
    digest = hashlib.sha256()
    for path in paths:
        content = path.read_bytes()
        if path.suffix == ".json":
            content = _canonical_json(content)
        digest.update(f"{path.name}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()


def digest_vocabulary(tokenizer: TokenizersBackend) -> str:
    """SHA-256 over every token and its id, added ones included, hexadecimal.

    Not over files: the same tokenizer is written in several layouts, and an engine reads ids, not files. The digest is kept
    until tokens are added: it takes a third of a second.
    """
    known = _VOCABULARY_DIGESTS.get(tokenizer)
    if known is None or known[0] != len(tokenizer):
        by_id = sorted((token_id, token) for token, token_id in tokenizer.get_vocab().items())
        known = len(tokenizer), hashlib.sha256(json.dumps(by_id).encode()).hexdigest()
        _VOCABULARY_DIGESTS[tokenizer] = known
    return known[1]


def digest_tokenizer(tokenizer: TokenizersBackend, merges_follow_ids: bool | None = None) -> str:
    """SHA-256 over all that turns text into ids and ids into text, hexadecimal.

    Args:
        merges_follow_ids: What `_merges_follow_ids` says of its merges, where that is known; None looks, in half a second.
    """
    backend = tokenizer.backend_tokenizer
    added = sorted(
        (token_id, one.content, one.special, one.normalized, one.single_word, one.lstrip, one.rstrip)
        for token_id, one in backend.get_added_tokens_decoder().items()
    )
    parts = [
        digest_vocabulary(tokenizer),
        _model(backend.model, {one[1] for one in added}, merges_follow_ids),
        _part(backend.normalizer),
        _part(backend.pre_tokenizer),
        _adds_tokens(_part(backend.post_processor)),
        _decoder(_part(backend.decoder)),
        added,
        backend.truncation,
        backend.padding,
    ]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _model(model: Any, added: set[str], merges_follow_ids: bool | None) -> Any:
    """What a model does beside its vocabulary."""
    if type(model).__name__ != "BPE":
        return json.loads(model.__getstate__())
    settings = {
        "dropout": model.dropout or 0.0,
        "unk_token": model.unk_token,
        "continuing_subword_prefix": model.continuing_subword_prefix or "",
        "end_of_word_suffix": model.end_of_word_suffix or "",
        "fuse_unk": model.fuse_unk,
        "byte_fallback": model.byte_fallback,
        "ignore_merges": model.ignore_merges,
    }
    if merges_follow_ids is None:
        state = json.loads(model.__getstate__())
        if settings["continuing_subword_prefix"] or not _merges_follow_ids(state["vocab"], state["merges"], added):
            return {**settings, "merges": state["merges"]}
    elif not merges_follow_ids:
        raise ValueError("merges that do not follow ids must be digested themselves: pass None")
    return settings


def _merges_follow_ids(vocabulary: Mapping[str, int], merges: Sequence[tuple[str, str]], added: set[str]) -> bool:
    """Whether the vocabulary alone determines the merges: every token of several letters is made by one, in the order of ids.

    True where a tokenizer comes from a file of ranks. It is then written with one pair for each token (merges.txt) or with every
    pair that gives the token (transformers' conversion); both merge the same way.
    """
    made = [vocabulary.get(left + right, -1) for left, right in merges]
    known = set(made)
    return made == sorted(made) and all(
        token_id in known for token, token_id in vocabulary.items() if len(token) > 1 and token not in added
    )


def _part(part: Any) -> Any:
    """One of the backend's parts as values, without what only moves offsets. A sequence of one part counts as that part."""
    return None if part is None else _simplified(json.loads(part.__getstate__()))


def _simplified(state: dict[str, Any]) -> Any:
    if state["type"] == "Sequence":
        children = [_simplified(one) for name in _CHILDREN for one in state.get(name, ())]
        return children[0] if len(children) == 1 else children or None
    return {name: value for name, value in state.items() if name != "trim_offsets"}


def _adds_tokens(processor: Any) -> Any:
    """A post-processor that adds tokens; None for one that only moves offsets or passes ids on."""
    children = processor if isinstance(processor, list) else [] if processor is None else [processor]
    left = [one for one in children if one["type"] != "ByteLevel" and not _passes_on(one)]
    return left or None


def _passes_on(processor: Mapping[str, Any]) -> bool:
    return processor["type"] == "TemplateProcessing" and [list(one) for one in processor["single"]] == [["Sequence"]]


def _decoder(decoder: Any) -> Any:
    """The decoder without the options of a byte-level one, which has no use for them."""
    if isinstance(decoder, dict) and decoder["type"] == "ByteLevel":
        return {"type": "ByteLevel"}
    return decoder


def _canonical_json(content: bytes) -> bytes:
    """The values of a JSON file in canonical form; the content unchanged where it is not JSON."""
    try:
        values = json.loads(content)
    except ValueError:
        return content
    if isinstance(values, dict):
        values = {name: value for name, value in values.items() if name not in _OF_THE_WRITER}
    return json.dumps(values, sort_keys=True).encode()
