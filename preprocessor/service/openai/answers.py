"""`GenerateResponse` → OpenAI's chunks, and chunks → its whole completion. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from transformers.tokenization_utils_tokenizers import TokenizersBackend

from preprocessor.service.openai.chat import AnswerForm
from preprocessor.service.openai.tool_calls import ToolCallReader, function_call
from preprocessor.v1 import preprocessor_pb2 as pb

_FINISH_REASONS = {pb.FINISH_REASON_STOP: "stop", pb.FINISH_REASON_LENGTH: "length"}
_UNKNOWN_LOGPROB = -9999.0  # JSON has no NaN; vLLM's floor


class ChunkWriter:
    """The responses of one `Generate`, as chunks of a stream.

    Args:
        heading: What every chunk begins with: `id`, `created`, `model`.

    Attributes:
        usage: Counts of tokens; empty until the end.
    """

    def __init__(self, form: AnswerForm, heading: Mapping[str, Any], tokenizer: TokenizersBackend) -> None:
        self._form = form
        self._heading = dict(heading)
        self._tokenizer = tokenizer
        self._choices: dict[int, _Choice] = {}
        self.usage: dict[str, int] = {}

    def chunks_of(self, response: pb.GenerateResponse) -> list[dict[str, Any]]:
        """The chunks that a response makes, none for some."""
        match response.WhichOneof("message"):
            case "header":
                self._heading["system_fingerprint"] = response.header.model_fingerprint
                return []
            case "delta":
                delta = response.delta
                choice = self._choice(delta.answer_index).take(delta.text)
                if delta.logprobs:
                    content = [self._logprob(*pair) for pair in zip(delta.token_ids, delta.logprobs, strict=True)]
                    choice["logprobs"] = {"content": content, "refusal": None}
                return [self._chunk([choice])] if choice["delta"] or delta.logprobs else []
        return self._last_chunks(response.completion)

    def _last_chunks(self, completion: pb.Completion) -> list[dict[str, Any]]:
        prompt_count, answer_count = completion.prompt_token_count, completion.completion_token_count
        self.usage = {
            "prompt_tokens": prompt_count,
            "completion_tokens": answer_count,
            "total_tokens": prompt_count + answer_count,
        }
        chunks = [
            self._chunk([self._choice(index).finish(_FINISH_REASONS[end.finish_reason])])
            for index, end in enumerate(completion.answers)
        ]
        return [*chunks, self._chunk([]) | {"usage": self.usage}] if self._form.with_usage else chunks

    def _choice(self, index: int) -> _Choice:
        return self._choices.setdefault(index, _Choice(index, self._form))

    def _chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {**self._heading, "object": "chat.completion.chunk", "choices": choices}

    def _logprob(self, token_id: int, logprob: pb.TokenLogprob) -> dict[str, Any]:
        top = [self._token(one.token_id, one.logprob) for one in logprob.top]
        return {**self._token(token_id, logprob.logprob), "top_logprobs": top}

    def _token(self, token_id: int, logprob: float) -> dict[str, Any]:
        text: str = self._tokenizer.backend_tokenizer.decode([token_id], skip_special_tokens=False)
        return {
            "token": text,
            "logprob": logprob if math.isfinite(logprob) else _UNKNOWN_LOGPROB,
            "bytes": list(text.encode()),
        }


class _Choice:
    """One of the answers, as far as it has come."""

    def __init__(self, index: int, form: AnswerForm) -> None:
        self._index = index
        self._function = form.called_function
        self._reader = ToolCallReader() if form.reads_tool_calls else None
        self._has_begun = False
        self._has_called = False

    def take(self, text: str) -> dict[str, Any]:
        """The choice of a chunk with the next text."""
        if self._function:
            return self._of("", [self._arguments(text)] if text else [])
        if self._reader is not None:
            return self._of(*self._reader.push(text))
        return self._of(text, [])

    def finish(self, reason: str) -> dict[str, Any]:
        """The choice of its last chunk."""
        choice = self._of("" if self._reader is None else self._reader.finish(), [])
        has_called = self._reader is not None and self._reader.call_count
        return {**choice, "finish_reason": "tool_calls" if has_called and reason == "stop" else reason}

    def _arguments(self, text: str) -> dict[str, Any]:
        """The next text as arguments of the function that was chosen."""
        if self._has_called:
            return {"index": 0, "function": {"arguments": text}}
        self._has_called = True
        return function_call(self._function, text, 0)

    def _of(self, text: str, calls: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        delta: dict[str, Any] = {}
        if not self._has_begun:
            self._has_begun = True
            delta |= {"role": "assistant", "content": ""}
        if text:
            delta["content"] = text
        if calls:
            delta["tool_calls"] = list(calls)
        return {"index": self._index, "delta": delta, "logprobs": None, "finish_reason": None}


class Completion:
    """Chunks put together."""

    def __init__(self) -> None:
        self._last: dict[str, Any] = {}
        self._choices: dict[int, dict[str, Any]] = {}

    def add(self, chunk: Mapping[str, Any]) -> None:
        self._last = dict(chunk)
        for one in chunk["choices"]:
            choice = self._choices.setdefault(one["index"], {"text": [], "calls": [], "logprobs": None, "reason": None})
            choice["text"].append(one["delta"].get("content", ""))
            for call in one["delta"].get("tool_calls", ()):
                if "id" in call:
                    choice["calls"].append({name: value for name, value in call.items() if name != "index"})
                else:
                    choice["calls"][call["index"]]["function"]["arguments"] += call["function"]["arguments"]
            if one["logprobs"] is not None:
                if choice["logprobs"] is None:
                    choice["logprobs"] = {"content": [], "refusal": None}
                choice["logprobs"]["content"] += one["logprobs"]["content"]
            choice["reason"] = one["finish_reason"] or choice["reason"]

    def whole(self, usage: Mapping[str, int]) -> dict[str, Any]:
        """OpenAI's object for the whole answer."""
        choices = [
            {
                "index": index,
                "message": _message("".join(choice["text"]), choice["calls"]),
                "logprobs": choice["logprobs"],
                "finish_reason": choice["reason"],
            }
            for index, choice in sorted(self._choices.items())
        ]
        return {**self._last, "object": "chat.completion", "choices": choices, "usage": dict(usage)}


def _message(text: str, calls: list[dict[str, Any]]) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": text or (None if calls else ""), "refusal": None}
    return {**message, "tool_calls": calls} if calls else message
