"""Where and in which precision a run computes."""

import contextlib
import logging
from collections.abc import Iterator

import tensorflow as tf
import tf_keras as keras

from models.training.config import RunConfig


def make_strategy(config: RunConfig) -> tf.distribute.Strategy:
    """Returns the strategy of a run.

    `one_device` is TensorFlow's default placement: the first GPU if there is one.
    `mirrored` takes the GPUs, or, without any, `num_devices` logical CPU devices: that
    is for tests, since they share the same cores.

    Raises:
      ValueError: When there are fewer devices than asked for, or the batch does not
        divide among them.
    """
    if config.strategy == "one_device":
        return tf.distribute.get_strategy()
    kind = "GPU" if tf.config.list_physical_devices("GPU") else "CPU"
    if kind == "CPU":
        _split_cpu(config.num_devices or 1)
    devices = [device.name for device in tf.config.list_logical_devices(kind)]
    count = config.num_devices or len(devices)
    if count > len(devices):
        raise ValueError(
            f"RunConfig.num_devices must be at most the {len(devices)} {kind} devices "
            f"of this process; got {count}. Lower it, or start a new process: CPU "
            "devices can only be split before TensorFlow's first use."
        )
    if config.batch_size % count:
        raise ValueError(
            f"RunConfig.batch_size must be a multiple of the {count} devices; got "
            f"{config.batch_size}."
        )
    return tf.distribute.MirroredStrategy(devices[:count])


def _split_cpu(count: int) -> None:
    cpu = tf.config.list_physical_devices("CPU")[0]
    if count > 1 and not tf.config.get_logical_device_configuration(cpu):
        with contextlib.suppress(RuntimeError):  # too late: the caller counts devices
            tf.config.set_logical_device_configuration(
                cpu, [tf.config.LogicalDeviceConfiguration()] * count
            )


@contextlib.contextmanager
def precision(config: RunConfig) -> Iterator[None]:
    """Sets Keras' precision policy for the layers built inside.

    Mixed precision is `mixed_bfloat16` on every device: bfloat16 has float32's range
    of exponents, so no loss scale is needed.  Variables, losses and optimiser slots
    stay float32.
    """
    before = keras.mixed_precision.global_policy()
    if config.mixed_precision:
        keras.mixed_precision.set_global_policy("mixed_bfloat16")
    try:
        yield
    finally:
        keras.mixed_precision.set_global_policy(before)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Hides TensorFlow's warning that functions were traced often.

    Several runs in one process have functions of the same names, which it takes for
    one function traced again and again; `Loop.trace_count` is what tells.
    """

    def keep(record: logging.LogRecord) -> bool:
        return "triggered tf.function retracing" not in record.getMessage()

    logger = tf.get_logger()
    logger.addFilter(keep)
    try:
        yield
    finally:
        logger.removeFilter(keep)


def seed_everything(seed: int) -> None:
    """Seeds initialisers, and random layers by generators with a state to save.

    Keras' random layers then draw from `tf.random.Generator` objects; the checkpoint
    holds their states, so dropout goes on after a restart as if never stopped.
    """
    keras.backend.experimental.enable_tf_random_generator()
    keras.utils.set_random_seed(seed)


def generators(model: keras.Model) -> dict[str, tf.random.Generator]:
    """Returns the random generators inside a built model, by position.

    Keras leaves them out of checkpoints on purpose; the trainer puts them in.
    """
    found: dict[str, tf.random.Generator] = {}
    for layer in model.submodules:
        holder = getattr(layer, "_random_generator", None)
        generator = getattr(holder, "_generator", None)
        if isinstance(generator, tf.random.Generator):
            found[f"{len(found):03d}"] = generator
    return found
