"""How a row is stored: encode, parse, read, show, verify, repack.

Every package that imports TensorFlow imports this one first.  So these settings, which
must be made before TensorFlow's first import, stand here once: Keras 2 (`tf_keras`),
since tensorflow-recommenders refuses Keras 3, and a quiet start.
"""

import os
import warnings

# Google's clients, which TensorFlow imports where it finds them, announce at each start
# when they will stop supporting this Python.
_COUNTDOWN = "google.api_core._python_version_support"

NO_COUNTDOWN = f"ignore::FutureWarning:{_COUNTDOWN}"  # for -W of an isolated Python

os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
# 3, not 2: looking for CUDA libraries in vain is logged as an error.  What goes wrong
# in an operation is raised in Python at any level.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("PYTHONWARNINGS", NO_COUNTDOWN)
warnings.filterwarnings("ignore", category=FutureWarning, module=_COUNTDOWN)
