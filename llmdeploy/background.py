"""Blocking work in its own thread, with a deadline or beside an event loop."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from concurrent.futures import Future

T = TypeVar("T")


def start(work: Callable[[], T]) -> Future[T]:
    """Start `work()` in a daemon thread, for which the exit of the process does not wait."""
    from concurrent.futures import Future

    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:  # re-raised in the caller
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future


def within(seconds: float, work: Callable[[], T]) -> T:
    """Return `work()`, or raise TimeoutError after `seconds`.

    It runs in a thread: the time-out of a socket limits neither name look-ups nor slow headers.
    """
    return start(work).result(seconds)


async def in_thread(work: Callable[[], T]) -> T:
    """Run `work()` in a daemon thread. Neither a cancelled await nor the exit of the process waits for it."""
    import asyncio

    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: BaseException | None) -> None:
        if future.done():
            return
        if error is None:
            future.set_result(result)  # type: ignore[arg-type] # without an error there is a result
        else:
            future.set_exception(error)

    def run() -> None:
        result, error = None, None
        try:
            result = work()
        except BaseException as raised:  # re-raised where it is awaited
            error = raised
        with suppress(RuntimeError):  # the loop is closed: nothing awaits the result
            loop.call_soon_threadsafe(settle, result, error)

    threading.Thread(target=run, daemon=True).start()
    return await future
