"""A client of the service, for programs and for the command line. Installs without torch, transformers, PyAV and OpenCV.

>>> from preprocessor.client import Client, chat, image, video
>>> with Client(address) as client:
...     prompt = chat([{"role": "user", "content": [video(clip, fps=2), "What happens?"]}])
...     result = client.prepare(prompt, timeout_seconds=60)
...     with client.generate(prompt, max_tokens=4, timeout_seconds=60) as answer:
...         texts = [delta.text for delta in answer]
>>> result.tensors["pixel_patches"].dtype, result.header.items[0].key
(dtype('uint8'), 'clip.mp4')
>>> len(answer.token_ids), answer.completion.completion_token_count
(4, 4)

What the service refuses is a `CallFailed`, with a gRPC status code and a stable reason:

>>> with Client(address) as client:
...     client.prepare(chat("Hello", model="another"))
Traceback (most recent call last):
    ...
preprocessor.client.errors.CallFailed: MODEL_NOT_FOUND: ...

`sync` and `asynchronous` call; `media`, `messages` and `prompts` build prompts · `requests` prompts → messages · `answers`
messages → results, or rows in `shared_memory` · `retry` when to call again · `errors` · `channel` TLS and token.
"""

from preprocessor.client.answers import OneAnswer, PrepareResult
from preprocessor.client.asynchronous import AsyncAnswer, AsyncClient
from preprocessor.client.channel import Credentials
from preprocessor.client.errors import CallFailed, FieldViolation
from preprocessor.client.media import Cached, Medium, audio, image, video
from preprocessor.client.messages import with_files
from preprocessor.client.prompts import chat, text, token_ids, tools
from preprocessor.client.requests import Parameters, Progress, Prompt
from preprocessor.client.shared_memory import RowsRegion
from preprocessor.client.sync import Answer, Client
from preprocessor.config import SettingError
from preprocessor.errors import InvalidRequest

__all__ = [
    "Answer",
    "AsyncAnswer",
    "AsyncClient",
    "Cached",
    "CallFailed",
    "Client",
    "Credentials",
    "FieldViolation",
    "InvalidRequest",
    "Medium",
    "OneAnswer",
    "Parameters",
    "PrepareResult",
    "Progress",
    "Prompt",
    "RowsRegion",
    "SettingError",
    "audio",
    "chat",
    "image",
    "text",
    "token_ids",
    "tools",
    "video",
    "with_files",
]
