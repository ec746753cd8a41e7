"""`LocalActivation`: the attention of DIN."""

from collections.abc import Sequence
from typing import Any

import tensorflow as tf
import tf_keras as keras

from features.spec import PAD_ID
from models.layers import normalise
from models.layers.mlp import MLP
from models.layers.sequence_attention import Lookup, masked_softmax


@keras.utils.register_keras_serializable("isthmus")
class LocalActivation(keras.layers.Layer):
    """Sum of items weighed by a network: `sum_l MLP([q, s_l, q - s_l, q * s_l]) s_l`.

    The first kernel is applied by parts, which needs two products an item, not four.

    Source: Zhou et al., KDD 2018 (DIN), Eq. (3) and Figure 2.
    Differs: the difference is an input (authors' code); sigmoid or ReLU for
      PReLU/Dice.

    Args:
      hidden_units: Widths of the network's hidden layers, at least one.
      activation: Of the hidden layers.
      softmax: Whether weights are a softmax over the real items (paper: no).
    """

    def __init__(
        self,
        hidden_units: Sequence[int] = (80, 40),
        *,
        activation: str = "sigmoid",
        softmax: bool = False,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.hidden_units = tuple(hidden_units)
        self.activation = activation
        self.softmax = softmax
        self.rest = MLP(
            self.hidden_units[1:],
            output_units=1,
            activation=activation,
            dtype=kwargs.get("dtype"),
        )

    def build(self, input_shape: Any) -> None:
        """Creates the first layer; `input_shape` is that of the target."""
        units = self.hidden_units[0]
        self.kernel = self.add_weight("kernel", [4 * int(input_shape[-1]), units])
        self.bias = self.add_weight("bias", [units], initializer="zeros")
        super().build(input_shape)

    def call(self, target: tf.Tensor, ids: tf.Tensor, lookup: Lookup) -> tf.Tensor:
        """Returns [B, E]; zeros for a row without items.

        Args:
          target: q, [B, E].
          ids: int32 [B, L], PAD_ID anywhere.
          lookup: Embeds ids.
        """
        items, mask = lookup(ids), ids != PAD_ID
        scores = self.scores(target, items)
        if self.softmax:
            weights = masked_softmax(scores, mask)
        else:
            weights = scores * tf.cast(mask, scores.dtype)
        return tf.matmul(weights[:, tf.newaxis, :], items)[:, 0, :]

    def scores(self, target: tf.Tensor, items: tf.Tensor) -> tf.Tensor:
        """Returns the network's output for each item, [B, L]."""
        own, item, difference, product = tf.split(tf.convert_to_tensor(self.kernel), 4)
        once = tf.matmul(target, own + difference) + self.bias
        hidden = (
            once[:, tf.newaxis, :]
            + tf.tensordot(items, item - difference, 1)
            + tf.tensordot(items * target[:, tf.newaxis, :], product, 1)
        )
        return self.rest(normalise.activate(hidden, self.activation))[..., 0]

    def get_config(self) -> dict[str, Any]:
        """Returns the config."""
        return super().get_config() | {
            "hidden_units": self.hidden_units,
            "activation": self.activation,
            "softmax": self.softmax,
        }
