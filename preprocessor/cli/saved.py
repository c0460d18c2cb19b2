"""The safetensors file of `prepare --output`: tensors, and in its metadata the messages that describe them.

Readers of safetensors see tensors by the contract's names, and may ignore the metadata, whose keys begin with `preprocessor.`.
Their values are JSON: `header`, `report`, `spec` (without files and URLs) and `model` are the messages of the proto, `facts` is
`Facts`. The last is there only where the prompt was prepared with `--local`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

from google.protobuf import json_format
from google.protobuf.message import Message

from preprocessor import __version__
from preprocessor.client import PrepareResult
from preprocessor.config import SettingError
from preprocessor.prompt_page.facts import Facts, PreparedPrompt
from preprocessor.v1 import preprocessor_pb2 as pb

_PREFIX = "preprocessor."
_Message = TypeVar("_Message", bound=Message)


def save(prepared: PreparedPrompt, path: Path) -> None:
    """Write a result to a safetensors file.

    Raises:
        SettingError: It cannot be written, such as to a full disk.
    """
    from safetensors import SafetensorError  # not worth the import time of every other command
    from safetensors.numpy import save_file

    try:
        save_file(prepared.result.tensors, path, _metadata(prepared))
    except (SafetensorError, OSError) as error:
        raise SettingError("--output", str(path), f"a file that can be written ({error})") from error


def load(path: Path) -> PreparedPrompt:
    """Read what `save` wrote.

    Raises:
        SettingError: It is another file, or was written by a release before these metadata.
        OSError: It cannot be read.
    """
    from safetensors import SafetensorError, safe_open

    path.open("rb").close()  # an OSError with the file's name; safetensors' own errors lack it
    try:
        with safe_open(path, "np") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (no mapping)
        header = _parse(metadata, "header", pb.Header())
        report = _parse(metadata, "report", pb.Report())
        spec = _parse(metadata, "spec", pb.PrepareSpec())
        model = _parse(metadata, "model", pb.Model()) if _PREFIX + "model" in metadata else None
        facts = Facts.from_json(metadata[_PREFIX + "facts"]) if _PREFIX + "facts" in metadata else None
    except KeyError as error:
        accepted = f"a file that `preprocessor prepare --output` of this release wrote; its metadata lack {error}"
        raise SettingError("FILE", str(path), accepted) from error
    except (SafetensorError, json_format.ParseError, ValueError) as error:
        accepted = f"a safetensors file that `preprocessor prepare --output` wrote ({error})"
        raise SettingError("FILE", str(path), accepted) from error
    return PreparedPrompt(PrepareResult(header, report, tensors), spec, model, facts)


def _metadata(prepared: PreparedPrompt) -> dict[str, str]:
    messages: dict[str, Message] = {
        "header": _without_data(prepared.result.header),
        "report": prepared.result.report,
        "spec": _without_files(prepared.spec),
    }
    if prepared.model is not None:
        messages["model"] = prepared.model
    written = {
        _PREFIX + name: json_format.MessageToJson(message, indent=None, preserving_proto_field_name=True)
        for name, message in messages.items()
    }
    if prepared.facts is not None:
        written[_PREFIX + "facts"] = prepared.facts.to_json()
    return {_PREFIX + "version": __version__, **written}


def _without_data(header: pb.Header) -> pb.Header:
    """The header without the tensors that are in the file."""
    bare = pb.Header()
    bare.CopyFrom(header)
    for tensor in bare.tensors:
        tensor.ClearField("data")
    return bare


def _without_files(spec: pb.PrepareSpec) -> pb.PrepareSpec:
    """The spec without its media's files and URLs, which may hold credentials, and without its salt, which is a secret."""
    bare = pb.PrepareSpec()
    bare.CopyFrom(spec)
    bare.ClearField("cache_salt")
    for medium in bare.media:
        if source := medium.WhichOneof("source"):
            medium.ClearField(source)
    return bare


def _parse(metadata: Mapping[str, str], name: str, message: _Message) -> _Message:
    """
    Raises:
        KeyError: There is none of that name.
        ParseError: It is no such message.
    """
    json_format.Parse(metadata[_PREFIX + name], message, ignore_unknown_fields=True)
    return message
