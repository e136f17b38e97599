"""Traces of a job's checkpoints and recoveries, by OpenTelemetry.

Invariants: the job never waits for a trace. On its event loop a finished trace is only put into a bounded queue, from
which a thread of its own hands it on; so an exporter that fails or hangs costs traces and nothing else, and the thread
keeps no process alive. OpenTelemetry is imported only here, when traces are asked for.
"""

import asyncio
import contextlib
import logging
import queue
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Final, Protocol

from streamactors.errors import MissingExtra
from streamactors.launch import JobHandle
from streamactors.observe.spans import Span, Traces, exception_attributes
from streamactors.runtime.events import JobEvent, Moment

log = logging.getLogger("streamactors.traces")

MOST_WAITING: Final = 1000
"""Traces that are kept for an exporter that is slow."""
CLOSING: Final = 5.0
"""Seconds that the last traces are waited for."""
EXTRA: Final = "pip install 'streamactors[otel]'"

Emit = Callable[[Span], None]


class TracerProvider(Protocol):
    """That of OpenTelemetry."""

    def get_tracer(self, instrumenting_module_name: str, instrumenting_library_version: str | None = None) -> Any: ...


@asynccontextmanager
async def traced(
    handle: JobHandle, provider: TracerProvider | None = None, *, closing: float = CLOSING
) -> AsyncIterator[None]:
    """A trace for each checkpoint, savepoint and recovery of the job while the block lasts; by `provider`, else by the
    global one of OpenTelemetry. `closing`: seconds that the last ones are waited for. Raises MissingExtra."""
    hand = _Handing(_emitter(provider))
    traces = Traces(handle.name, handle.config.checkpoints)

    def listen(event: JobEvent, at: Moment) -> None:
        for span in traces.on(event, at):
            hand.on(span)

    with handle.listening(listen):
        try:
            yield
        finally:
            await hand.close(closing)


def _emitter(provider: TracerProvider | None) -> Emit:
    from importlib.metadata import version  # slow

    try:
        from opentelemetry import trace
        from opentelemetry.context import Context
    except ImportError as error:
        raise MissingExtra(f"traces need opentelemetry-api: {EXTRA}") from error
    tracer = (provider or trace.get_tracer_provider()).get_tracer("streamactors", version("streamactors"))

    def emit(span: Span, context: Context) -> None:
        made = tracer.start_span(span.name, context=context, start_time=span.start_ns, attributes=span.attributes)
        for recorded in span.errors:
            made.add_event("exception", exception_attributes(recorded.error), recorded.at_ns)
        if span.failed is not None:
            made.set_status(trace.Status(trace.StatusCode.ERROR, span.failed))
        if span.children:
            below = trace.set_span_in_context(made, context)
            for child in span.children:
                emit(child, below)
        made.end(span.end_ns)

    return lambda span: emit(span, Context())  # a trace of its own, whatever else goes on


class Aside:
    """Work in a thread of its own, which keeps neither the loop nor the process waiting."""

    def __init__(self, work: Callable[[], object]) -> None:
        self._loop = asyncio.get_running_loop()
        self._done = asyncio.Event()
        self._work = work
        threading.Thread(target=self._run, name="streamactors traces", daemon=True).start()

    async def ended(self, seconds: float) -> bool:
        """Whether it has, by then."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._done.wait()
        return self._done.is_set()

    def _run(self) -> None:
        try:
            self._work()
        except Exception as error:
            log.warning("traces may be lost: %s", error, exc_info=error)
        with contextlib.suppress(RuntimeError):  # the loop has been closed: nobody waits
            self._loop.call_soon_threadsafe(self._done.set)


class _Handing:
    """From the event loop to the thread."""

    def __init__(self, emit: Emit) -> None:
        self._emit = emit
        self._waiting: queue.SimpleQueue[Span | None] = queue.SimpleQueue()
        self._lost = 0
        self._complained = False
        self._thread = Aside(self._run)

    def on(self, span: Span) -> None:
        if self._waiting.qsize() < MOST_WAITING:
            self._waiting.put(span)
            return
        if not self._lost:
            log.warning("%d traces wait for their exporter: those that come now are lost", MOST_WAITING)
        self._lost += 1

    async def close(self, seconds: float) -> None:
        """An exporter that still hangs after that is left alone."""
        left = self._waiting.qsize()
        self._waiting.put(None)
        if not await self._thread.ended(seconds):
            log.warning("traces are lost: of %d, not all were taken within %.3g s", left + 1, seconds)
        if self._lost:
            log.warning("%d traces were lost", self._lost)

    def _run(self) -> None:
        while (span := self._waiting.get()) is not None:
            try:
                self._emit(span)
            except Exception as error:
                self._complain(error)

    def _complain(self, error: Exception) -> None:
        if not self._complained:
            self._complained = True
            log.warning("a trace could not be handed on (said once): %s", error, exc_info=error)
