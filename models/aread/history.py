"""`SearchState`: all that the mask search remembers, in variables for checkpoints."""

import numpy as np
import tensorflow as tf

from models.losses import global_sum


class SearchState(tf.Module):
    """Seed, number of searches done, and mean gates of each domain.

    Args:
      gate_shapes: [D, N_{l+1}, N_l] for each pair of layers.
      momentum: Of the mean gates: the plain mean of the first 1 / (1 - momentum)
        steps that have rows of the domain, a moving average from then on.

    Attributes:
      seed: Of all random draws of searches; taken from NumPy's generator, which the
        run has seeded.
      searches: Searches done.
      steps: [D], training steps that had rows of the domain.
      means: Mean gates over them, for each pair of layers.
    """

    def __init__(self, gate_shapes: list[list[int]], momentum: float):
        super().__init__()
        self.momentum = momentum
        self.seed = _state(np.random.randint(2**31), tf.int64)
        self.searches = _state(0, tf.int64)
        self.steps = _state(np.zeros(gate_shapes[0][0]), tf.float32)
        self.means = [_state(np.zeros(shape), tf.float32) for shape in gate_shapes]

    def trackables(self) -> dict[str, object]:
        """Returns what belongs into a checkpoint."""
        return {
            "seed": self.seed,
            "searches": self.searches,
            "steps": self.steps,
            "means": list(self.means),
        }

    def observe(self, gates: list[tf.Tensor], present: tf.Tensor) -> None:
        """Takes this step's gates into the means of the domains that have rows.

        Args:
          gates: [D, N_{l+1}, N_l] float32 for each pair of layers.
          present: [D], valid rows of this replica.
        """
        seen = global_sum(tf.cast(present, tf.float32)) > 0
        steps = self.steps + tf.cast(seen, tf.float32)
        self.steps.assign(steps)
        rate = tf.maximum(1.0 - self.momentum, 1.0 / tf.maximum(steps, 1.0))
        rate = tf.where(seen, rate, 0.0)[:, tf.newaxis, tf.newaxis]
        for mean, values in zip(self.means, gates, strict=True):
            mean.assign_add(rate * (values - mean))

    def mean_gates(self, domain: int, now: list[np.ndarray]) -> list[np.ndarray]:
        """Returns a domain's mean gates; those of now where it had no row yet."""
        if self.steps.numpy()[domain] == 0:
            return [gates[domain] for gates in now]
        return [mean.numpy()[domain] for mean in self.means]

    def generator(self, domain: int) -> np.random.Generator:
        """Returns the random numbers of the next search for a domain."""
        key = (int(self.seed.numpy()), int(self.searches.numpy()), domain)
        return np.random.default_rng(key)


def _state(value: object, dtype: tf.DType) -> tf.Variable:
    return tf.Variable(
        tf.cast(value, dtype),
        trainable=False,
        aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA,
    )
