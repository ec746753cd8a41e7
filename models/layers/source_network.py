"""`SemanticAlign`: source rows in the widths of the target, token by token (SAN)."""

from collections.abc import Mapping, Sequence
from typing import Any

import tensorflow as tf
import tf_keras as keras

from models.layers.domain import DomainDense
from models.layers.domain_rows import DomainRows
from models.layers.tokens import TOKENS


@keras.utils.register_keras_serializable("isthmus")
class SemanticAlign(keras.layers.Layer):
    """One MLP per source and token: [B, source widths] -> [B, target widths].

    Hidden layers are ReLU, the last one is linear.  A token that the target has and
    the source has not is a trained vector per source.

    Source: Zhang et al., KDD 2023 (CCTL), Section 2.4.1, Eq. (6) and (7).
    Differs: the last layer is linear, since embeddings have either sign.

    Args:
      num_sources: S, >= 1; each has networks of its own.
      source_widths: Width of each token of a source row, in the order of `TOKENS`.
      target_widths: Width of each token of a target row.
      hidden_units: Widths of the hidden layers of each network; may be empty.
    """

    def __init__(
        self,
        num_sources: int,
        source_widths: Mapping[str, int],
        target_widths: Mapping[str, int],
        hidden_units: Sequence[int] = (64,),
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.num_sources = num_sources
        self.source_widths = dict(source_widths)
        self.target_widths = dict(target_widths)
        self.hidden_units = tuple(hidden_units)
        for token in TOKENS:
            if self.source_widths[token] and not self.target_widths[token]:
                raise ValueError(
                    f"SemanticAlign.source_widths[{token!r}] must be 0 where the "
                    f"target has no such token; got {self.source_widths[token]}. "
                    "Leave those features of the source out."
                )
        self.mapped = [t for t in TOKENS if self.source_widths[t]]
        self.missing = [
            t for t in TOKENS if self.target_widths[t] and t not in self.mapped
        ]
        self.networks = {
            token: [
                *(
                    DomainDense(
                        num_sources,
                        units,
                        activation="relu",
                        dtype=kwargs.get("dtype"),
                    )
                    for units in self.hidden_units
                ),
                DomainDense(
                    num_sources, self.target_widths[token], dtype=kwargs.get("dtype")
                ),
            ]
            for token in self.mapped
        }

    def build(self, input_shape: Any) -> None:
        """Creates the weights."""
        del input_shape
        for token, layers in self.networks.items():
            width = self.source_widths[token]
            for layer in layers:
                layer.build([None, width])
                width = layer.units
        self.constants = {
            token: self.add_weight(
                f"constant_{token}",
                [self.num_sources, self.target_widths[token]],
                initializer="zeros",
            )
            for token in self.missing
        }
        super().build([])

    def call(self, x: tf.Tensor, source: tf.Tensor) -> tf.Tensor:
        """Returns [B, sum of the target widths].

        Args:
          x: [B, sum of the source widths], tokens in the order of `TOKENS`.
          source: Index of each row's source, int32 [B].
        """
        rows = DomainRows(source, self.num_sources)
        sizes = [self.source_widths[token] for token in self.mapped]
        tokens = dict(
            zip(self.mapped, tf.split(rows.enter(x), sizes, axis=-1), strict=True)
        )
        for token, layers in self.networks.items():
            for layer in layers:
                tokens[token] = layer(tokens[token], rows)
        for token, table in self.constants.items():
            rows_of = tf.gather(table, rows.enter(source))
            tokens[token] = tf.cast(rows_of, self.compute_dtype)
        return rows.leave(tf.concat([tokens[t] for t in TOKENS if t in tokens], -1))

    def get_config(self) -> dict[str, Any]:
        """Returns the config."""
        return super().get_config() | {
            "num_sources": self.num_sources,
            "source_widths": dict(self.source_widths),
            "target_widths": dict(self.target_widths),
            "hidden_units": self.hidden_units,
        }
