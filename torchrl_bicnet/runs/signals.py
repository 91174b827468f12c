"""Signals that ask a run to stop, caught until it can be resumed from where it is."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def stop_signals() -> Iterator[list[signal.Signals]]:
    """Within ``with``, SIGINT (Ctrl-C) and SIGTERM are put into a list, for a loop to stop where it can be resumed.

    A second signal interrupts at once. Outside the main thread, where Python allows no handlers, signals act as before.

    Example:
        >>> with stop_signals() as stop:
        ...     signal.raise_signal(signal.SIGTERM)
        ...     print(stop)
        [<Signals.SIGTERM: 15>]
    """
    caught: list[signal.Signals] = []

    def catch(number: int, frame: object) -> None:
        if caught:
            raise KeyboardInterrupt(number)
        caught.append(signal.Signals(number))
        sys.stderr.write("\nStopping where the run can be resumed; a second signal stops at once.\n")

    if threading.current_thread() is not threading.main_thread():
        yield caught
        return
    before = {number: signal.signal(number, catch) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
