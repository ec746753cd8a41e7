"""Keeps what libraries say on import, and no user can act on, off the terminal."""

import contextlib
import io
import logging
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any

from pipeline.errors import is_user_error

_STDERR = 2  # its file descriptor, which child processes inherit
_LOG_CHARS = 20_000  # of the workers' log, shown on a failure
_NO_USE = (
    "crcmod package not found",  # google-crc32c, which Beam brings, is used instead
    "Resource module is not available",  # RunInference then counts no memory
)


def start() -> None:
    """Sets the filter of log lines; the other settings are `tfrecords_tools`' own."""
    logging.getLogger().addFilter(_is_of_use)


def tfdv() -> Any:
    """Returns TensorFlow Data Validation, without its advice on notebooks."""
    with contextlib.redirect_stderr(io.StringIO()):
        import tensorflow_data_validation
    return tensorflow_data_validation


@contextlib.contextmanager
def workers(beam_args: Sequence[str]) -> Iterator[None]:
    """Keeps what local worker processes write to the terminal off it.

    They log every channel they open, whatever level is asked for.  When the job fails
    by something that is not the user's to mend, what they wrote is shown after all.
    """
    if not any("multi_processing" in flag for flag in beam_args):
        yield
        return
    with tempfile.TemporaryFile() as log:
        before, terminal = sys.stderr, os.dup(_STDERR)
        before.flush()
        os.dup2(log.fileno(), _STDERR)
        if _is_terminal_stream(before):
            sys.stderr = os.fdopen(os.dup(terminal), "w", buffering=1)
        try:
            yield
        except BaseException as error:
            if not is_user_error(error):
                log.seek(0)
                sys.stderr.write(log.read().decode("utf-8", "replace")[-_LOG_CHARS:])
            raise
        finally:
            os.dup2(terminal, _STDERR)
            os.close(terminal)
            if sys.stderr is not before:
                sys.stderr.close()
                sys.stderr = before


def _is_terminal_stream(stream: Any) -> bool:
    try:
        return stream.fileno() == _STDERR
    except (OSError, AttributeError, ValueError):
        return False  # a test's or a notebook's own stream


def _is_of_use(record: logging.LogRecord) -> bool:
    return not str(record.msg).startswith(_NO_USE)
