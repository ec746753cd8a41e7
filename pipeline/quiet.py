"""Keeps what libraries say on import, and no user can act on, off the terminal."""

import contextlib
import io
import logging
import os
import warnings
from typing import Any

# Google's clients, which Beam imports, count the days of this Python version.
_COUNTDOWN = "google.api_core._python_version_support"

_NO_USE = (
    "crcmod package not found",  # google-crc32c, which Beam brings, is used instead
    "Resource module is not available",  # RunInference then counts no memory
)


def start() -> None:
    """Sets the filters; worker processes inherit them through the environment."""
    os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
    # 3, not 2: TensorFlow calls its look for CUDA libraries an error.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("PYTHONWARNINGS", f"ignore::FutureWarning:{_COUNTDOWN}")
    warnings.filterwarnings("ignore", category=FutureWarning, module=_COUNTDOWN)
    logging.getLogger().addFilter(_is_of_use)


def tfdv() -> Any:
    """Returns TensorFlow Data Validation, without its advice on notebooks."""
    with contextlib.redirect_stderr(io.StringIO()):
        import tensorflow_data_validation
    return tensorflow_data_validation


def _is_of_use(record: logging.LogRecord) -> bool:
    return not str(record.msg).startswith(_NO_USE)
