"""How a row is stored: encode, parse, read, show, verify, repack.

Keras 2 (`tf_keras`) is chosen here, once, before TensorFlow is first imported:
tensorflow-recommenders refuses Keras 3.
"""

import os

os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
