"""Whether tokens that came through the service and Triton are those that transformers itself answers to the same clip."""

from __future__ import annotations

import asyncio
import tempfile
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from tests.bench.device import direct
from tests.bench.device.asking import ask, question
from tests.bench.device.engines import WAYS, Way, services, triton, worker_count
from tests.bench.device.first_token import stub_of


def equality(checkpoint: Path, *, forms: tuple[str, ...]) -> dict[str, Any]:
    """Ask every question by every way with one of these forms, and transformers."""
    ways = [way for way in WAYS if way.form in forms]
    models = dict.fromkeys((way.form, way.takes_pieces) for way in ways)
    options = ("--workers", str(worker_count()), "--memory-budget", "4GiB")
    with (
        tempfile.TemporaryDirectory() as folder,
        triton(models, checkpoint, Path(folder)) as engine,
        services(ways, engine.grpc_address, Path(folder), *options) as servers,
    ):
        answers = asyncio.run(_answers({way: server.address for way, server in servers.items()}))
    return _compared(answers, direct.answers(checkpoint))


async def _answers(addresses: dict[Way, str]) -> dict[str, dict[str, list[int]]]:
    """Token ids by way and by question."""
    found: dict[str, dict[str, list[int]]] = {}
    async with AsyncExitStack() as stack:
        for way, address in addresses.items():
            stub = await stub_of(stack, address)
            found[way.name] = {
                name: list((await ask(stub, question(fps, direct.ANSWER_TOKENS, of_clip))).token_ids)
                for name, (fps, of_clip) in direct.QUESTIONS.items()
            }
    return found


def _compared(answers: dict[str, dict[str, list[int]]], right: dict[str, list[int]]) -> dict[str, Any]:
    """Of each answer, how many tokens from the first on are the direct call's."""
    agreeing = {
        way: {name: common_length(tokens, right[name]) for name, tokens in by_name.items()}
        for way, by_name in answers.items()
    }
    return {
        "direct": right,
        "distinct_answers": len({tuple(tokens) for tokens in right.values()}),
        "answer_tokens": direct.ANSWER_TOKENS,
        "agreeing_tokens": agreeing,
        "answers": answers,
    }


def common_length(tokens: list[int], right: list[int]) -> int:
    for index, (one, other) in enumerate(zip(tokens, right, strict=False)):
        if one != other:
            return index
    return min(len(tokens), len(right))
