"""Methods, layers, losses, optimisers and the one training loop."""

import tfrecords_tools  # noqa: F401 - settings to make before TensorFlow is imported
