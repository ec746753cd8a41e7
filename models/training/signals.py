"""SIGTERM and SIGINT as a polite request: finish the call, save, leave."""

import signal
import threading
import types
from typing import Any, Self


class Interrupted(RuntimeError):
    """The run was asked to stop and has saved its state.

    Attributes:
      exit_code: 128 + the signal's number, as shells report it.
    """

    def __init__(self, message: str, signal_number: int):
        super().__init__(message)
        self.exit_code = 128 + signal_number


class StopRequest:
    """Context that notes the signals instead of dying; a second one kills.

    Outside the main thread Python allows no handler; then nothing is noted.
    """

    SIGNALS = (signal.SIGTERM, signal.SIGINT)

    def __init__(self) -> None:
        self.received: int | None = None
        self._old: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in self.SIGNALS:
                self._old[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)
        self._old.clear()

    def _note(self, number: int, frame: types.FrameType | None) -> None:
        del frame
        if self.received is not None:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        self.received = number
