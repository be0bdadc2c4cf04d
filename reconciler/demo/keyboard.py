"""Single keys from a terminal, without Enter."""

from __future__ import annotations

import os
import select
import sys
import termios
import tty
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final

GONE: Final = "\x04"  # what `Keyboard.wait` returns when the terminal is gone; also Ctrl-D


class Keyboard:
    """Keys that are typed. Without a terminal there is none, and `wait` only waits."""

    def __init__(self, descriptor: int | None) -> None:
        self._descriptor = descriptor

    @property
    def is_there(self) -> bool:
        """Whether keys can be typed."""
        return self._descriptor is not None

    def wait(self, seconds: float) -> str:
        """Return the keys typed within so many seconds, at the first of them; "" if there was none."""
        here = [] if self._descriptor is None else [self._descriptor]
        if not select.select(here, [], [], seconds)[0]:
            return ""
        try:
            typed = os.read(here[0], 64)
        except OSError:  # the terminal has hung up
            return GONE
        return typed.decode(errors="ignore").lower() if typed else GONE


@contextmanager
def keyboard() -> Iterator[Keyboard]:
    """Yield the terminal's keyboard, if stdin and stdout are terminals. Ctrl-C still sends its signal."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        yield Keyboard(None)
        return
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    tty.setcbreak(descriptor)
    try:
        yield Keyboard(descriptor)
    finally:
        with suppress(termios.error):  # the terminal has hung up
            termios.tcsetattr(descriptor, termios.TCSADRAIN, before)
