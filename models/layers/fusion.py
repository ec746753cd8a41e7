"""Fusion weights of M3oE: how much of each domain and task expert a head gets."""

from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras

NAMES = ("alpha_domain", "alpha_task", "beta_domain", "beta_task")


@keras.utils.register_keras_serializable("isthmus")
class Fusion(keras.layers.Layer):
    """The weights of all domain and task experts for every head, [D, T, D + T].

    Each of alpha_d, alpha_t, beta_d, beta_t is sigmoid(raw).  For head (d, t) domain
    expert j weighs alpha_d (beta_d if j = d, else (1 - beta_d) / (D - 1)); task experts
    likewise.  With one domain (or task) its expert weighs alpha.

    Source: Zhang et al., SIGIR 2024 (M3oE), Eq. (5)-(7).
    Differs: alpha_d goes with the domain module, alpha_t with the task module (text
    and authors' code; Eq. (7) swaps them).

    Args:
      num_domains: D, >= 1.
      num_tasks: T, >= 1.
      initial: Raw start value; sigmoid(1) = 0.731.
      per_head: One alpha and beta per domain and per task instead of four scalars.
      with_alpha: Whether there are alphas; else alpha is 1.
    """

    def __init__(
        self,
        num_domains: int,
        num_tasks: int,
        *,
        initial: float = 1.0,
        per_head: bool = False,
        with_alpha: bool = True,
        **kwargs: Any,
    ):
        # Four numbers: float32 under any policy.
        super().__init__(**{"dtype": "float32", **kwargs})
        self.num_domains = num_domains
        self.num_tasks = num_tasks
        self.initial = initial
        self.per_head = per_head
        self.with_alpha = with_alpha

    def build(self, input_shape: Any) -> None:
        """Creates the weights."""
        self.raw = {}
        for name in NAMES if self.with_alpha else NAMES[2:]:
            count = self.num_domains if name.endswith("domain") else self.num_tasks
            self.raw[name] = self.add_weight(
                f"fusion_{name}",
                [count if self.per_head else 1],
                initializer=keras.initializers.Constant(self.initial),
            )
        super().build(input_shape)

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """Returns the table [D, T, D + T] float32; `inputs` is not read."""
        del inputs
        shape = [self.num_domains, self.num_tasks]
        domains = self._balance("domain", self.num_domains)[:, tf.newaxis]
        tasks = self._balance("task", self.num_tasks)[tf.newaxis]
        return tf.concat(
            [
                tf.broadcast_to(domains, [*shape, self.num_domains]),
                tf.broadcast_to(tasks, [*shape, self.num_tasks]),
            ],
            axis=-1,
        )

    def _balance(self, kind: str, count: int) -> tf.Tensor:
        """[count, count]: alpha times own and other experts' shares."""
        alpha = tf.ones([1, 1])
        if self.with_alpha:
            alpha = tf.sigmoid(self.raw[f"alpha_{kind}"])[:, tf.newaxis]
        if count == 1:
            return alpha * tf.ones([1, 1])
        beta = tf.sigmoid(self.raw[f"beta_{kind}"])[:, tf.newaxis]
        others = (1.0 - beta) / (count - 1)
        return alpha * (others + (beta - others) * tf.eye(count))

    def values(self) -> dict[str, float]:
        """Returns the weights by name; one each, or `<name>_<index>` per head."""
        found = {}
        for name, raw in self.raw.items():
            numbers = tf.sigmoid(raw).numpy()
            for index, number in enumerate(numbers):
                key = f"{name}_{index}" if len(numbers) > 1 else name
                found[f"fusion/{key}"] = float(number)
        return found

    def get_config(self) -> dict[str, Any]:
        """Returns the config."""
        return super().get_config() | {
            "num_domains": self.num_domains,
            "num_tasks": self.num_tasks,
            "initial": self.initial,
            "per_head": self.per_head,
            "with_alpha": self.with_alpha,
        }


@keras.utils.register_keras_serializable("isthmus")
class FixedFusion(keras.layers.Layer):
    """A table of `Fusion` as a constant, for export.

    Args:
      table: [D, T, D + T] float32.
    """

    def __init__(self, table: Any, **kwargs: Any):
        super().__init__(**{"dtype": "float32", **kwargs})
        self.table = np.asarray(table, np.float32)

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """Returns the table; `inputs` is not read."""
        del inputs
        return tf.constant(self.table)

    def get_config(self) -> dict[str, Any]:
        """Returns the config."""
        return super().get_config() | {"table": self.table.tolist()}
