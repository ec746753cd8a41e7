"""Beam jobs: preprocess, batch_score; readers of raw formats; data validation."""

import tfrecords_tools  # noqa: F401 - settings to make before TensorFlow is imported
from pipeline import quiet

quiet.start()
