"""Streams of bytes on their way to a file."""

import contextlib
from collections.abc import AsyncGenerator, AsyncIterable
from typing import Final

from streamactors.checkpoint.storage.contract import Chunks

BLOCK: Final = 256 * 1024
"""Bytes that are written at once: smaller chunks are joined, since every trip to a thread costs some 50 µs."""


async def blocks(chunks: Chunks) -> AsyncGenerator[bytes, None]:
    """The same bytes in blocks of at least `BLOCK` bytes, the last one excepted."""
    small: list[bytes] = []
    size = 0
    async with contextlib.aclosing(each_chunk(chunks)) as each:
        async for chunk in each:
            small.append(chunk)
            size += len(chunk)
            if size >= BLOCK:
                yield small[0] if len(small) == 1 else b"".join(small)
                small, size = [], 0
    if size:
        yield b"".join(small)


async def each_chunk(chunks: Chunks) -> AsyncGenerator[bytes, None]:
    """Closes an asynchronous generator that it was given when it is closed itself."""
    if isinstance(chunks, AsyncIterable):
        iterator = aiter(chunks)
        try:
            async for chunk in iterator:
                yield chunk
        finally:
            if isinstance(iterator, AsyncGenerator):
                await iterator.aclose()
    else:
        for chunk in chunks:
            yield chunk


async def again(taken: list[bytes], rest: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
    """What was taken from the front of `rest`, and the rest. Lets go of each chunk as it is written."""
    taken.reverse()
    while taken:
        yield taken.pop()
    async for chunk in rest:
        yield chunk
