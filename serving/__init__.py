"""Export, embedded model server, client: from a trained workdir to scores."""

import tfrecords_tools  # noqa: F401 - settings to make before TensorFlow is imported
