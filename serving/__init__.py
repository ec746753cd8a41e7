"""Export, embedded model server, client: from a trained workdir to scores.

Keras 2 (`tf_keras`) is chosen here, once, before TensorFlow is first imported:
tensorflow-recommenders refuses Keras 3.
"""

import os
import warnings

os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
# TensorFlow imports Google's API client where Beam brought it along, and that tells
# every process when Google's support for the Python version ends.
warnings.filterwarnings(
    "ignore", "You are using a Python version .* which Google", FutureWarning
)
