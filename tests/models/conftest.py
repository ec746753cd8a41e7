"""Two logical CPU devices, set before TensorFlow starts, to test replicas."""

import models  # noqa: F401 - chooses Keras 2, so it comes first

import pytest  # isort: skip
import tensorflow as tf  # isort: skip


def _split_cpu():
    device = tf.config.list_physical_devices("CPU")[0]
    if tf.config.get_logical_device_configuration(device) is None:
        tf.config.set_logical_device_configuration(
            device, [tf.config.LogicalDeviceConfiguration()] * 2
        )


_split_cpu()


@pytest.fixture(scope="session")
def two_replicas():
    """The one MirroredStrategy on two CPU devices (see `losses.global_sum`)."""
    return tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
