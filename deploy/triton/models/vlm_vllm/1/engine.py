"""vLLM's `AsyncLLM` on an event loop of its own, in a thread: prompts go in from any thread, and vLLM batches them.

    build (any thread) ──▶ start ──▶ (event loop) AsyncLLM.generate ──▶ on_tokens, on_end, called on the loop
                                          watch: stopped prompts are aborted; a dead core is told once

vLLM runs its scheduler and model in a process of its own, the core. If that dies, no prompt is answered any more.
"""

from __future__ import annotations

import asyncio
import locale
import multiprocessing
import os
import threading
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import wait
from typing import Any

from engine_client.contract.assembler import PromptAssembler
from engine_client.contract.errors import InvalidPrompt, Refused
from engine_client.contract.sampling import SamplingParameters, TokenLogprob
from engine_client.contract.tensors import CANCELLED, LENGTH, STOP

from .facts import EngineFacts, UnsupportedEngine, read_facts
from .items import is_constrained, sampling_arguments, token_logprobs
from .settings import ModelParameters

OnTokens = Callable[[list[int], str | None, Sequence[TokenLogprob], int], None]
OnEnd = Callable[[str | BaseException], None]
WATCH_SECONDS = 0.05  # from one look for stopped prompts and a dead core to the next; it reads flags alone
CORE_IS_DEAD = "vLLM's engine core has died; this engine answers no more prompts"


class SlowStart(RuntimeError):
    """vLLM was not ready in time."""


class EngineGone(Refused):
    """The engine takes no prompts any more."""


class Engine:
    """One loaded checkpoint.

    Args:
        settings: How to load it.
    Raises:
        UnsupportedEngine: vLLM is missing, or the checkpoint is not for this model.
        SlowStart: it was not loaded in `max_start_seconds`.
        Exception: as vLLM raises it, where it cannot load the checkpoint.
    """

    def __init__(self, settings: ModelParameters) -> None:
        self._running: dict[asyncio.Task[None], PromptAssembler] = {}
        self._is_dead = False
        self._count = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="engine", daemon=True)
        self._thread.start()
        try:
            loading = asyncio.run_coroutine_threadsafe(self._load(settings), self._loop)
            wait([loading], settings.max_start_seconds)
            if not loading.done():
                for process in multiprocessing.active_children():  # vLLM itself waits for its core without a limit
                    process.kill()
                raise SlowStart(
                    f"vLLM was not ready in {settings.max_start_seconds:g} s; give it longer (max_start_seconds), or look "
                    "above for what it waits for"
                )
            loading.result()
        except BaseException:
            self._end_loop()
            raise

    facts: EngineFacts
    """Set when the checkpoint is loaded."""
    registry: Any
    """`prometheus_client.REGISTRY`, where vLLM keeps its figures; set at the same time."""

    @property
    def is_dead(self) -> bool:
        """Whether the core has died."""
        return self._is_dead

    @property
    def description(self) -> str:
        """One line for the log."""
        form = "uint8" if self.facts.normalizes else str(self.facts.dtype)
        return f"vllm {self._version}, {self.facts.model_type}, pixels as {form}"

    def require_alive(self) -> None:
        """Raise EngineGone if the core has died."""
        if self._is_dead:
            raise EngineGone(CORE_IS_DEAD)

    def watch(self, on_death: Callable[[], None]) -> None:
        """Begin to abort stopped prompts, and to look whether the core lives; before the first `start`.

        Args:
            on_death: Called once, on the event loop, when the core has died.
        """
        self._watching = asyncio.run_coroutine_threadsafe(self._watch(on_death), self._loop)

    def start(
        self,
        name: str,
        assembler: PromptAssembler,
        inputs: Any,
        *,
        on_tokens: OnTokens,
        on_end: OnEnd,
    ) -> None:
        """Have one prompt answered. Returns at once; stopping the assembler aborts it.

        Args:
            name: Of the prompt, for vLLM's log.
            assembler: Says how to sample, and whether the answer is still wanted.
            inputs: From `build_input`.
            on_tokens: Called with new token ids of an answer, on its last call with the finish reason, with their log
                probabilities where they were asked for, and with which of several answers it is, from 0.
            on_end: Called once, with STOP, LENGTH or CANCELLED, or with the error: InvalidPrompt, EngineGone or another.
        """
        asyncio.run_coroutine_threadsafe(self._begin(name, assembler, inputs, on_tokens, on_end), self._loop)

    def shutdown(self) -> None:
        """End the core and free the GPU."""
        self._watching.cancel()
        self._llm.shutdown()
        self._end_loop()

    async def _load(self, settings: ModelParameters) -> None:
        # Triton's Python leaves the locale as "C", in which torch 2.13 cannot read files of its own that are UTF-8.
        locale.setlocale(locale.LC_CTYPE, "C.UTF-8")
        # A fork of this process would have Triton's threads' locks and none of its threads.
        os.environ.setdefault("VLLM_WORKER_MULTIPROCESSING_METHOD", "spawn")
        # Its own limit, for a part of the start, is 600 s, which large weights need.
        os.environ.setdefault("VLLM_ENGINE_READY_TIMEOUT_S", str(int(settings.max_start_seconds)))
        try:
            import prometheus_client
            import vllm
            from vllm.engine.arg_utils import AsyncEngineArgs
            from vllm.multimodal import MULTIMODAL_REGISTRY
            from vllm.multimodal.encoder_budget import MultiModalBudget
            from vllm.usage.usage_lib import UsageContext
            from vllm.v1.engine.async_llm import AsyncLLM
            from vllm.v1.engine.exceptions import EngineDeadError
        except ImportError as error:
            raise UnsupportedEngine(f"vllm cannot be imported ({error}); 0.32 is tested") from error
        # Its cache of processed media has nothing to do: what comes is processed, and the core would keep 4 GiB of it.
        arguments: Mapping[str, Any] = {"mm_processor_cache_gb": 0} | dict(settings.engine_arguments)
        self._version = vllm.__version__
        self.registry = prometheus_client.REGISTRY
        self._dead_error = EngineDeadError
        # As a server, vLLM chooses larger batches: on an H200 8,192 tokens in a step in place of 2,048.
        self._llm = AsyncLLM.from_engine_args(
            AsyncEngineArgs(model=settings.checkpoint, **arguments), usage_context=UsageContext.OPENAI_API_SERVER
        )
        try:
            config = self._llm.vllm_config
            budget = MultiModalBudget(config, MULTIMODAL_REGISTRY)
            processor = budget.processor.info.get_hf_processor()
            self.facts = read_facts(config, budget.get_encoder_budget(), getattr(processor, "image_processor", None))
        except BaseException:
            self._llm.shutdown()
            raise

    async def _begin(
        self, name: str, assembler: PromptAssembler, inputs: Any, on_tokens: OnTokens, on_end: OnEnd
    ) -> None:
        self._count += 1
        answering = self._answer(f"{name}-{self._count}", assembler, inputs, on_tokens)
        task = self._loop.create_task(self._end(answering, on_end))
        self._running[task] = assembler
        task.add_done_callback(self._running.pop)

    async def _end(self, answering: Coroutine[Any, Any, str], on_end: OnEnd) -> None:
        try:
            outcome: str | BaseException = await answering
        except asyncio.CancelledError:  # by the watch below
            outcome = CANCELLED
        except Exception as failure:  # whatever it was, the stream must end
            outcome = failure
        on_end(outcome)

    async def _answer(self, name: str, assembler: PromptAssembler, inputs: Any, on_tokens: OnTokens) -> str:
        sampling = assembler.sampling
        try:
            async for output in self._llm.generate(inputs, self._parameters(sampling), name):
                for completion in output.outputs:
                    reason, token_ids = completion.finish_reason, list(completion.token_ids)
                    if reason == "error" and is_constrained(sampling):  # 0.32, Scheduler.grammar_compile_error_reqs
                        raise InvalidPrompt("vLLM refused the prompt: it cannot enforce the constraint")
                    if reason not in (STOP, LENGTH, None):
                        raise RuntimeError(f"vLLM ended the answer with {reason!r}")
                    likely = token_logprobs(token_ids, completion.logprobs, sampling.logprobs)
                    on_tokens(token_ids, reason, likely, completion.index)
                if output.finished:
                    return str(reason)
        except self._dead_error as error:
            raise EngineGone(CORE_IS_DEAD) from error
        except Exception as error:
            told = translated(error)
            if told is error:
                raise
            raise told from error
        raise RuntimeError("vLLM ended the answer without a finish reason")

    def _parameters(self, sampling: SamplingParameters) -> Any:
        from vllm.sampling_params import RequestOutputKind, SamplingParams, StructuredOutputsParams

        arguments = sampling_arguments(sampling)
        if "structured_outputs" in arguments:
            arguments["structured_outputs"] = StructuredOutputsParams(**arguments["structured_outputs"])
        return SamplingParams(**arguments, output_kind=RequestOutputKind.DELTA)

    async def _watch(self, on_death: Callable[[], None]) -> None:
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            for task, assembler in self._running.items():
                if assembler.is_stopped:
                    task.cancel()
            if self._llm.errored and not self._is_dead:
                self._is_dead = True
                on_death()

    def _end_loop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=10)


def translated(error: Exception) -> Exception:
    """What an error of vLLM is to a caller, by the names of its classes, which differ from release to release.

    InvalidPrompt for a wrong prompt: a ValueError, by itself or as the cause (0.24), or a VLLMClientError (0.32). Refused for a
    full queue (`max_num_queued_reqs`): a GracefulHTTPError. Any other is itself.
    """
    kinds = {kind.__name__ for one in (error, error.__cause__) if one is not None for kind in type(one).__mro__}
    if "GracefulHTTPError" in kinds:
        return Refused(f"too many prompts are queued in vLLM ({type(error).__name__})")
    if kinds & {"ValueError", "VLLMClientError"}:
        return InvalidPrompt(f"vLLM refused the prompt: {error.__cause__ or error}")
    return error
