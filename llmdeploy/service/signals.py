"""The signals that stop a service, and how they reach it."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import FrameType


class Terminated(KeyboardInterrupt):
    """SIGTERM or SIGHUP: a request to stop, unlike Ctrl-C, which interrupts."""


def stop_signal() -> asyncio.Future[int]:
    """Return a future that is done with the signal's number as soon as this process is told to stop."""
    loop = asyncio.get_running_loop()
    stop: asyncio.Future[int] = loop.create_future()

    def on_signal(number: int) -> None:
        if not stop.done():
            stop.set_result(number)

    for number in stopping():
        try:
            loop.add_signal_handler(number, on_signal, number)
        except NotImplementedError:  # Windows
            signal.signal(number, lambda number, _frame: loop.call_soon_threadsafe(on_signal, number))
    return stop


def call_on_another(act: Callable[[], None]) -> None:
    """Call `act` for each further signal: a second Ctrl-C does not wait."""
    for number in stopping():
        with suppress(NotImplementedError):  # Windows
            asyncio.get_running_loop().add_signal_handler(number, act)


class interrupting:
    """A context in which every signal that stops the service raises an exception, as Ctrl-C does."""

    def __enter__(self) -> None:
        self._before = {number: signal.signal(number, self._raise) for number in stopping()}

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @staticmethod
    def _raise(number: int, _frame: FrameType | None) -> None:
        raise interruption(number)


def interruption(number: int) -> KeyboardInterrupt:
    """Return the exception that a signal is raised as."""
    return KeyboardInterrupt() if number == signal.SIGINT else Terminated()


def stopping() -> list[int]:
    """Return the signals that stop the service: not those that were ignored before, as under `nohup`."""
    names = ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK")
    numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
    return [number for number in numbers if signal.getsignal(number) != signal.SIG_IGN]


def named(number: int) -> str:
    """Return the name of a signal."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
