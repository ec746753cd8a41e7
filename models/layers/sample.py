"""`SampledDomains`: a few domains at random, others at each call."""

from typing import Any

import tensorflow as tf
import tf_keras as keras


@keras.utils.register_keras_serializable("isthmus")
class SampledDomains(keras.__internal__.layers.BaseRandomLayer):
    """Draws `count` of D domains without replacement, one sample for all rows.

    Its generator is Keras' of random layers, so the trainer's checkpoints hold it.

    Args:
      num_domains: D.
      count: 1 <= count <= D.
    """

    def __init__(self, num_domains: int, count: int, **kwargs: Any):
        super().__init__(**kwargs)
        self.num_domains = num_domains
        self.count = count

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """Returns int32 [count]; `inputs` is not read."""
        del inputs
        keys = self._random_generator.random_uniform([self.num_domains])
        return tf.math.top_k(keys, self.count).indices

    def get_config(self) -> dict[str, Any]:
        """Returns the config."""
        return super().get_config() | {
            "num_domains": self.num_domains,
            "count": self.count,
        }
