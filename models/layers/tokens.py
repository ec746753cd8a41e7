"""`TokenEmbeddings`: a row as user, item and context tokens, with tables per source."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import tensorflow as tf
import tf_keras as keras

from features.schema import FeatureInfo
from features.spec import PAD_ID, UNKNOWN_ID
from models.layers.embeddings import FieldEmbeddings

TOKENS = ("user", "item", "context")


def token_of(info: FeatureInfo) -> str:
    """Returns the token of a field: its role, a behaviour sequence being the user's."""
    return "user" if info.role == "sequence" else info.role


@keras.utils.register_keras_serializable("isthmus")
class TokenEmbeddings(keras.layers.Layer):
    """Looks fields up and joins them token by token: features -> [B, I].

    Several sources have tables of their own: they lie one after the other in one
    variable, and an id of source s is read in the s-th part, so that one gather serves
    rows of all sources.  PAD_ID is one zero row for all; an id outside its table is
    UNKNOWN_ID of its source.

    Source: Zhang et al., KDD 2023 (CCTL), Section 2.4.1, Eq. (6).
    Differs: none.

    Args:
      features: Fields, as `FeatureInfo` or their dicts, none of role `domain`.
      num_sources: S, tables a field, >= 1.
      stddev: Standard deviation of the initial values, > 0.

    Attributes:
      widths: Width of each token; 0 where no field has that role.
    """

    def __init__(
        self,
        features: Sequence[FeatureInfo | Mapping[str, Any]],
        *,
        num_sources: int = 1,
        stddev: float = 0.01,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.features = tuple(
            f if isinstance(f, FeatureInfo) else FeatureInfo(**f) for f in features
        )
        for info in self.features:
            if token_of(info) not in TOKENS:
                raise ValueError(
                    "TokenEmbeddings.features must have roles user, item, context or "
                    f"sequence; got {info.name!r} of role {info.role!r}. Leave it out."
                )
        self.num_sources = num_sources
        self.stddev = stddev
        self.fields = FieldEmbeddings(
            [
                dataclasses.replace(f, num_ids=f.num_ids * num_sources)
                for f in self.features
            ],
            stddev=stddev,
            copies=num_sources,
            dtype=kwargs.get("dtype"),
        )
        self.widths = {
            token: sum(f.width for f in self.features if token_of(f) == token)
            for token in TOKENS
        }

    @property
    def width(self) -> int:
        """I: widths of all tokens together."""
        return sum(self.widths.values())

    def build(self, input_shape: Any) -> None:
        """Creates the tables."""
        self.fields.build(input_shape)
        super().build(input_shape)

    def call(
        self, features: Mapping[str, tf.Tensor], source: tf.Tensor | None = None
    ) -> tf.Tensor:
        """Returns [B, I]: user fields, item fields, context fields.

        Args:
          features: As `Batch.features`.
          source: Index of each row's source, int32 [B] in 0..S-1; None where S = 1.
        """
        return self.join(self.by_field(features, source))

    def by_field(
        self, features: Mapping[str, tf.Tensor], source: tf.Tensor | None = None
    ) -> dict[str, tf.Tensor]:
        """Returns each field apart: {name: [B, width]}; the layer must be built."""
        placed = {
            f.name: features[f.name]
            if f.kind == "number"
            else self.place(f.name, features[f.name], source)
            for f in self.features
        }
        return self.fields.by_field(placed)

    def join(self, fields: Mapping[str, tf.Tensor]) -> tf.Tensor:
        """Returns the fields of `by_field` as one [B, I], token after token."""
        return tf.concat(
            [
                fields[f.name]
                for token in TOKENS
                for f in self.features
                if token_of(f) == token
            ],
            axis=-1,
        )

    def place(
        self, name: str, ids: tf.Tensor, source: tf.Tensor | None = None
    ) -> tf.Tensor:
        """Returns ids [B] or [B, L] of a field as they lie in the joined tables."""
        if source is None or self.num_sources == 1:
            return ids
        size = next(f.num_ids for f in self.features if f.name == name)
        offset = tf.cast(source, ids.dtype) * size
        offset = tf.reshape(offset, [-1] + [1] * (ids.shape.rank - 1))
        known = tf.logical_and(ids >= 0, ids < size)
        placed = tf.where(known, ids, UNKNOWN_ID) + offset
        return tf.where(ids == PAD_ID, PAD_ID, placed)

    def get_config(self) -> dict[str, Any]:
        """Returns the config."""
        return super().get_config() | {
            "features": [dataclasses.asdict(f) for f in self.features],
            "num_sources": self.num_sources,
            "stddev": self.stddev,
        }


def scale_gradient(x: tf.Tensor, factor: float) -> tf.Tensor:
    """Returns `x` itself; its gradient is multiplied by `factor`."""

    @tf.custom_gradient
    def op(x: tf.Tensor) -> tuple[tf.Tensor, Callable]:
        return tf.identity(x), lambda up: up * factor

    return op(x)
