"""Keeps what libraries say on import, and no user can act on, off the terminal."""

import contextlib
import io
import logging
import os
import warnings
from typing import Any

# Google's clients, which Beam imports, count the days of this Python version.
_COUNTDOWN = "google.api_core._python_version_support"


def start() -> None:
    """Sets the filters; worker processes inherit them through the environment."""
    os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("PYTHONWARNINGS", f"ignore::FutureWarning:{_COUNTDOWN}")
    warnings.filterwarnings("ignore", category=FutureWarning, module=_COUNTDOWN)
    logging.getLogger().addFilter(_is_of_use)


def tfdv() -> Any:
    """Returns TensorFlow Data Validation, without its advice on notebooks."""
    with contextlib.redirect_stderr(io.StringIO()):
        import tensorflow_data_validation
    return tensorflow_data_validation


def _is_of_use(record: logging.LogRecord) -> bool:
    # Beam's dependencies bring google-crc32c, so this one never matters.
    return not str(record.msg).startswith("crcmod package not found")
