"""Models whose prompts the package mistral-common writes, such as Voxtral: messages and sounds → token ids, with no text between.

Control tokens come from the structure of the messages alone. Text that spells one is encoded as text, so a literal part is the
same here as any other.

Source: transformers 5.23, VoxtralProcessor.apply_chat_template, MistralCommonBackend.apply_chat_template.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from transformers.tokenization_utils_tokenizers import TokenizersBackend

from preprocessor.config import Limits
from preprocessor.errors import InvalidRequest, trace_of
from preprocessor.models.generic.arguments import KINDS, ProcessorArguments
from preprocessor.text.encoding import check_memory
from preprocessor.text.prompt_checks import check_length, order_chat_media
from preprocessor.types.request import ChatPrompt, Media, MediaPart, Message, PreparationRequest, TextPart, TokenPrompt

# Arguments of MistralCommonBackend.apply_chat_template that say something of the prompt.
_CHAT_ARGUMENTS = frozenset({"tools", "continue_final_message", "reasoning_effort"})
_IEEE_FLOAT = 3  # the format tag of a WAV file
_MESSAGE_LENGTH = 500  # of the library's own words in an error


def check_chat(tokenizer: TokenizersBackend, name: str, request: PreparationRequest, limits: Limits) -> list[Media]:
    """The media of a chat in the order of its parts.

    Args:
        tokenizer: As `reading_tokenizer` gives it.
        name: The model's, for messages.
    Raises:
        InvalidRequest: `TOKENS_NOT_ACCEPTED` or `PROCESSOR_REFUSED` for a prompt that is no chat; `CHAT_TEMPLATE_FAILED` for an
            argument that mistral-common does not take; as `order_chat_media`.
        LimitExceeded: `PROMPT_TOO_LONG`, `TOKENIZING_MEMORY_EXCEEDED`.
    """
    prompt = request.prompt
    if not isinstance(prompt, ChatPrompt):
        raise InvalidRequest(
            f"mistral-common writes the prompts of {name} from messages, and takes no rendered prompt: send messages",
            reason="TOKENS_NOT_ACCEPTED" if isinstance(prompt, TokenPrompt) else "PROCESSOR_REFUSED",
        )
    if unknown := prompt.template_arguments.keys() - _CHAT_ARGUMENTS:
        raise InvalidRequest(
            f"template_arguments holds {min(unknown)!r}; mistral-common, which writes the prompts of {name}, takes "
            f"{', '.join(sorted(_CHAT_ARGUMENTS))}",
            reason="CHAT_TEMPLATE_FAILED",
        )
    media = order_chat_media(prompt, request.media, limits.max_media_count)
    text = json.dumps(dict(prompt.template_arguments), ensure_ascii=False) if prompt.template_arguments else ""
    for message in prompt.messages:
        text += "".join(part.text for part in message.parts if isinstance(part, TextPart))
        text += json.dumps(dict(message.extra), ensure_ascii=False) if message.extra else ""
    check_length(len(text) + len(media), limits.max_prompt_length)
    check_memory(tokenizer, text, limits, is_cut=False)
    return media


def chat_call(
    request: PreparationRequest,
    sounds: Sequence[npt.NDArray[np.float32]],
    sample_rate_hz: int,
    arguments: ProcessorArguments,
) -> dict[str, Any]:
    """What to call the processor's `apply_chat_template` with.

    Args:
        request: A chat.
        sounds: float32 [samples] each, in the order of the chat's parts.
    """
    prompt = request.prompt
    assert isinstance(prompt, ChatPrompt)
    files = (_wav(sound, sample_rate_hz) for sound in sounds)
    parts = {KINDS[modality]: dict(values) for modality, values in arguments.parts.items()}
    return {
        "conversation": [_message(message, files) for message in prompt.messages],
        "processor_kwargs": {**arguments.own, **parts, "text_kwargs": dict(prompt.template_arguments)},
    }


def run_chat(processor: Any, call: Mapping[str, Any]) -> Mapping[str, Any]:
    """The processor's answer to a `chat_call`.

    Raises:
        InvalidRequest: `CHAT_TEMPLATE_FAILED` for messages or tools that mistral-common does not accept.
    """
    from mistral_common.exceptions import MistralCommonException
    from pydantic import ValidationError

    try:
        output: Mapping[str, Any] = processor.apply_chat_template(**call)
    except ValidationError as error:  # its own words show the values
        faults = (f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors(include_input=False))
        raise _refused("; ".join(faults), error) from error
    except (MistralCommonException, ArithmeticError, AssertionError, AttributeError, LookupError, ValueError) as error:
        raise _refused(str(error) or type(error).__name__, error) from error
    return output


def _refused(words: str, error: Exception) -> InvalidRequest:
    words = " ".join(words.split())[:_MESSAGE_LENGTH]
    refusal = InvalidRequest(f"mistral-common does not accept these messages: {words}", reason="CHAT_TEMPLATE_FAILED")
    refusal.trace = trace_of(error)
    return refusal


def _message(message: Message, files: Iterator[bytes]) -> dict[str, Any]:
    """One message as mistral-common reads it: a string where it is one text, else typed parts."""
    content: Any = [_part(part, files) for part in message.parts]
    if all(part["type"] == "text" for part in content) and len(content) < 2:
        content = "".join(part["text"] for part in content)
    return {**message.extra, "role": message.role, "content": content}


def _part(part: TextPart | MediaPart, files: Iterator[bytes]) -> dict[str, Any]:
    if isinstance(part, TextPart):
        return {"type": "text", "text": part.text}
    return {"type": "input_audio", "input_audio": next(files)}


def _wav(samples: npt.NDArray[np.float32], sample_rate_hz: int) -> bytes:
    """A WAV file of 32-bit floats, one channel, which mistral-common reads back as they are.

    Not by soundfile: libsndfile ends a file that it has written by fsync, which a worker's sandbox does not allow.
    """
    format_chunk = struct.pack("<4sIHHIIHH", b"fmt ", 16, _IEEE_FLOAT, 1, sample_rate_hz, sample_rate_hz * 4, 4, 32)
    size = 4 + len(format_chunk) + 8 + samples.nbytes
    head = struct.pack("<4sI4s", b"RIFF", size, b"WAVE") + format_chunk + struct.pack("<4sI", b"data", samples.nbytes)
    return head + samples.astype("<f4", copy=False).tobytes()
