"""Where a prompt comes from: prepared in this process, by a service, or saved in a file."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path

from preprocessor.cli import saved
from preprocessor.cli.local import prepare_here
from preprocessor.cli.prepare import ask_service
from preprocessor.cli.prompts import build_prompt, has_prompt
from preprocessor.config import SettingError
from preprocessor.prompt_page.build import Subject
from preprocessor.prompt_page.facts import PreparedPrompt
from preprocessor.prompt_page.tokens import TokenTexts, token_texts

_NO_FACTS = "Only a run in this process tells what was decoded beside the sampled frames, and what `preprocessor plan` estimates."


def subject_of(options: argparse.Namespace) -> Subject:
    """The prompt that the command line names.

    Raises:
        SettingError, InvalidRequest, OSError: It is not accepted, or a file cannot be read.
        CallFailed: The service refused it, or did not answer.
    """
    if options.saved:
        return _from_file(options)
    return _from_service(options) if options.address else _prepared_here(options)


def _prepared_here(options: argparse.Namespace) -> Subject:
    prepared, model = prepare_here(build_prompt(options))
    texts = token_texts(model.tokenizer, _ids(prepared))
    return Subject(prepared, f"Prepared in this process by {model.name}.", texts)


def _from_service(options: argparse.Namespace) -> Subject:
    prepared = ask_service(options, build_prompt(options), with_model=True)
    texts, notes = _texts_of(prepared, options.tokenizer)
    return Subject(prepared, f"Prepared by the service at {options.address}.", texts, (_NO_FACTS, *notes))


def _from_file(options: argparse.Namespace) -> Subject:
    if has_prompt(options) or options.address:
        raise SettingError("FILE", options.saved, "a saved prompt or --video, --image and --text, not both")
    prepared = saved.load(Path(options.saved))
    texts, notes = _texts_of(prepared, options.tokenizer)
    if prepared.facts is None:
        notes = (_NO_FACTS, *notes)
    return Subject(prepared, f"Read from {Path(options.saved).name}.", texts, notes)


def _texts_of(prepared: PreparedPrompt, tokenizer_name: str) -> tuple[TokenTexts | None, tuple[str, ...]]:
    """The texts of a prompt's tokens, and what is to be said of them.

    An answer's name of its model is not trusted: by itself it loads a built-in model, no directory and nothing from a hub.
    """
    header = prepared.result.header
    try:
        from preprocessor.models.names import builtin_names
        from preprocessor.models.registry import load_model
    except ModuleNotFoundError:
        return None, ("The tokens' texts are not known: that needs pip install 'vlm-preprocessor[serve]'.",)
    name = tokenizer_name or (header.model if header.model in builtin_names() else "")
    if not name:
        return None, ("The tokens' texts are not known: --tokenizer names the model whose tokenizer tells them.",)
    model = load_model(name)
    notes: tuple[str, ...] = ()
    if model.fingerprint != header.model_fingerprint:
        notes = (f"The tokens' texts are those of {name} here, whose fingerprint is not that of the prompt's model.",)
    return token_texts(model.tokenizer, _ids(prepared)), notes


def _ids(prepared: PreparedPrompt) -> Iterable[int]:
    ids = prepared.result.tensors.get("input_ids")
    return [] if ids is None else ids.ravel().tolist()
