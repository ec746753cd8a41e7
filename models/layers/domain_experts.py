"""`DomainExperts`: one network per domain, over one or more sets of rows."""

from collections.abc import Sequence
from typing import Any

import tensorflow as tf
import tf_keras as keras

from models.layers import normalise
from models.layers.domain import DomainDense, DomainStack
from models.layers.domain_rows import DomainRows
from models.layers.partitioned_norm import PartitionedNorm

NORMS = ("none", "layer", "batch")


@keras.utils.register_keras_serializable("isthmus")
class DomainExperts(keras.layers.Layer):
    """Each row through the network of the domain it is looked at in: [N, I] -> [N, H].

    The first set is that of the real rows: batch normalisation takes the statistics
    of a domain from its real rows alone and applies them to all rows looked at in it
    (a domain with fewer than two real rows uses its moving averages).

    Source: Liu et al., 2025 (SSCTL), Eq. (1), g^k.
    Differs: none.

    Args:
      num_domains: D, >= 1.
      hidden_units: Widths of the layers, at least one.
      norm: `none`, `layer` or `batch`, with a scale and shift for each domain.
      dropout: Share of activations set to 0 in training, 0 <= dropout < 1.
    """

    def __init__(
        self,
        num_domains: int,
        hidden_units: Sequence[int],
        *,
        norm: str = "layer",
        dropout: float = 0.0,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.num_domains = num_domains
        self.hidden_units = tuple(hidden_units)
        self.norm = normalise.check_norm("DomainExperts", norm, NORMS)
        self.dropout = dropout
        dtype = kwargs.get("dtype")
        if norm != "batch":
            self.stack = DomainStack(
                num_domains, 1, hidden_units, norm=norm, dropout=dropout, dtype=dtype
            )
            return
        self.linears = [DomainDense(num_domains, u, dtype=dtype) for u in hidden_units]
        self.norms = [
            PartitionedNorm(num_domains, own_only=True, dtype=dtype)
            for _ in hidden_units
        ]
        self.drops = [keras.layers.Dropout(dropout) for _ in hidden_units if dropout]

    def build(self, input_shape: Any) -> None:
        """Creates the weights."""
        if self.norm != "batch":
            self.stack.build(input_shape[0])
        else:
            width = int(input_shape[0][-1])
            for linear, norm in zip(self.linears, self.norms, strict=True):
                linear.build([None, width])
                width = linear.units
                norm.build([None, width])
        super().build(input_shape)

    def call(
        self,
        inputs: Sequence[tf.Tensor],
        rows: Sequence[DomainRows],
        domains: Sequence[tf.Tensor],
        training: bool = False,
        valid: tf.Tensor | None = None,
    ) -> list[tf.Tensor]:
        """Returns [N, H] of each set of rows.

        Args:
          inputs: [N, I] of each set.
          rows: How each set is laid out by the domains its rows are looked at in.
          domains: Those domains, int32 [N].
          training: Whether dropout and batch statistics are on.
          valid: bool [N], rows of the first set that batch statistics count.
        """
        parts = list(inputs)
        if self.norm != "batch":
            return [
                self.stack(x, r, training=training)[:, 0]
                for x, r in zip(parts, rows, strict=True)
            ]
        for i, (linear, norm) in enumerate(zip(self.linears, self.norms, strict=True)):
            parts = [linear(x, r) for x, r in zip(parts, rows, strict=True)]
            scale, shift = norm.affine(parts[0], domains[0], training, valid)
            parts = [
                tf.nn.relu(
                    x * tf.cast(tf.gather(scale, d), x.dtype)
                    + tf.cast(tf.gather(shift, d), x.dtype)
                )
                for x, d in zip(parts, domains, strict=True)
            ]
            if self.drops:
                parts = [self.drops[i](x, training=training) for x in parts]
        return parts

    def get_config(self) -> dict[str, Any]:
        """Returns the config."""
        return super().get_config() | {
            "num_domains": self.num_domains,
            "hidden_units": self.hidden_units,
            "norm": self.norm,
            "dropout": self.dropout,
        }
