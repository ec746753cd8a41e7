"""`Selector`: how much each source row is worth to the target."""

from collections.abc import Sequence
from typing import Any

import tensorflow as tf
import tf_keras as keras

from models.layers.domain import DomainDense
from models.layers.domain_rows import DomainRows
from models.layers.mlp import MLP

# Of the score only: at p = 1 a row would have no score left, and could never come back.
SCORE_RANGE = (0.01, 0.99)


@keras.utils.register_keras_serializable("isthmus")
class Selector(keras.layers.Layer):
    """An MLP shared by all sources, then a linear head per source: [B, I] -> [B].

    p = sigmoid(output).  Its input carries no gradient back.

    Source: Zhang et al., KDD 2023 (CCTL), Eq. (8).
    Differs: the sign of the bias (immaterial); a head per source; float32 logits are
      given instead of p.

    Args:
      num_sources: S, >= 1.
      hidden_units: Widths of the shared layers; may be empty.
    """

    def __init__(
        self, num_sources: int, hidden_units: Sequence[int] = (64, 32), **kwargs: Any
    ):
        super().__init__(**kwargs)
        self.num_sources = num_sources
        self.hidden_units = tuple(hidden_units)
        self.hidden = MLP(self.hidden_units, dtype=kwargs.get("dtype"))
        self.head = DomainDense(num_sources, 1, dtype=kwargs.get("dtype"))

    def call(self, x: tf.Tensor, source: tf.Tensor) -> tf.Tensor:
        """Returns logits [B], float32.

        Args:
          x: Source rows [B, I].
          source: Index of each row's source, int32 [B].
        """
        rows = DomainRows(source, self.num_sources)
        hidden = self.hidden(rows.enter(tf.stop_gradient(x)))
        return tf.cast(rows.leave(self.head(hidden, rows))[:, 0], tf.float32)

    def get_config(self) -> dict[str, Any]:
        """Returns the config."""
        return super().get_config() | {
            "num_sources": self.num_sources,
            "hidden_units": self.hidden_units,
        }


def score(
    logits: tf.Tensor, taken: tf.Tensor, mask: tf.Tensor, denominator: tf.Tensor
) -> tf.Tensor:
    """Returns a scalar whose gradient is the mean score `sum_i d log pi(a_i) / N`.

    d log pi / d logit is `a - p`: with a = 1 that of log p, with a drawn by p that of
    the Bernoulli's log probability.  p is held inside `SCORE_RANGE` here.

    Source: Zhang et al., KDD 2023 (CCTL), Eq. (9); Williams, 1992.
    Differs: written with the gradient of the logit, exact at any logit.

    Args:
      logits: [B] float32.
      taken: Actions a, [B] or scalar in {0, 1}.
      mask: [B] float32, 1 for rows that count.
      denominator: N, rows that count (of all replicas).
    """
    probs = tf.clip_by_value(tf.sigmoid(logits), *SCORE_RANGE)
    coefficients = tf.stop_gradient((taken - probs) * mask)
    return tf.math.divide_no_nan(tf.reduce_sum(coefficients * logits), denominator)
