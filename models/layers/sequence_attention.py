"""Attention of the row's own item over a sequence of earlier ones.

Layers over tensors take `target` [B, E], `items` [B, K, E] and `mask` bool [B, K],
true for real items.  Layers over a whole sequence take its ids and a `lookup`, so that
only the items attended to are looked up with a gradient.  A row without any item gives
zeros.  Attention of one query needs no projected sequence: keys and values meet the
kernels after pooling, which is the same sum in another order.
"""

from collections.abc import Callable
from typing import Any

import tensorflow as tf
import tf_keras as keras

from features.spec import PAD_ID

Lookup = Callable[[tf.Tensor], tf.Tensor]  # ids int32 [B, K] -> items [B, K, E]

_HIDDEN = -1e9  # score of a padded item; exp of it is 0 in float32
_EXACT = 2**24  # float32 counts without gaps up to here


@keras.utils.register_keras_serializable("isthmus")
class TargetAttention(keras.layers.Layer):
    """Multi-head attention with one query: [B, E] over [B, K, E] -> [B, H * U].

    `softmax_k((q W_q)_h . (s_k W_k)_h / sqrt(U))` weighs `(s_k W_v)_h`; the heads,
    concatenated, go through W_o.  No biases.

    Source: Vaswani et al., NeurIPS 2017, section 3.2.2, as Chen et al. (ETA),
      DLP-KDD 2022, use it.
    Differs: none.

    Args:
      num_heads: H, >= 1.
      head_units: U, >= 1.
    """

    def __init__(self, num_heads: int, head_units: int, **kwargs: Any):
        super().__init__(**kwargs)
        self.num_heads = num_heads
        self.head_units = head_units

    @property
    def units(self) -> int:
        """Width of the output, H * U."""
        return self.num_heads * self.head_units

    def build(self, input_shape: Any) -> None:
        """Creates the kernels; `input_shape` is that of the target."""
        width = int(input_shape[-1])
        self.query_kernel, self.key_kernel, self.value_kernel = (
            self.add_weight(f"{name}_kernel", [width, self.units])
            for name in ("query", "key", "value")
        )
        self.output_kernel = self.add_weight("output_kernel", [self.units, self.units])
        super().build(input_shape)

    def call(self, target: tf.Tensor, items: tf.Tensor, mask: tf.Tensor) -> tf.Tensor:
        """Returns [B, H * U]; zeros for a row without items."""
        shape = [-1, self.num_heads, self.head_units]
        query = tf.reshape(tf.matmul(target, self.query_kernel), shape)
        query = tf.einsum("bhu,ehu->bhe", query, tf.reshape(self.key_kernel, shape))
        scores = tf.matmul(query, items, transpose_b=True) * self.head_units**-0.5
        weights = masked_softmax(scores, mask[:, tf.newaxis, :])
        pooled = tf.matmul(weights, items)  # [B, H, E]
        out = tf.einsum("bhe,ehu->bhu", pooled, tf.reshape(self.value_kernel, shape))
        return tf.matmul(tf.reshape(out, [-1, self.units]), self.output_kernel)

    def get_config(self) -> dict[str, Any]:
        """Returns the config."""
        return super().get_config() | {
            "num_heads": self.num_heads,
            "head_units": self.head_units,
        }


@keras.utils.register_keras_serializable("isthmus")
class HashedTargetAttention(keras.layers.Layer):
    """Target attention over the `top_k` items whose hash is nearest to the target's.

    `code(v) = sign(v R)`, R [E, m] normal, drawn once and saved with the weights; the
    Hamming distance of two codes is `(m - code(q) . code(s)) / 2`.  Hashing has no
    gradient.  Padding comes last whatever its distance, and has no weight where a row
    has fewer than `top_k` items.  A sequence of at most `top_k` items is not hashed.

    Source: Chen et al., "Efficient Long Sequential User Data Modeling for
      Click-Through Rate Prediction", DLP-KDD 2022 (ETA), sections 3.2 and 3.3.
    Differs: of items at the same distance the later ones are taken.

    Args:
      num_heads: See `TargetAttention`.
      head_units: See `TargetAttention`.
      top_k: Items attended to, >= 1.
      num_bits: m, bits of a code, >= 1.
    """

    def __init__(
        self,
        num_heads: int,
        head_units: int,
        *,
        top_k: int,
        num_bits: int,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.num_heads = num_heads
        self.head_units = head_units
        self.top_k = top_k
        self.num_bits = num_bits
        self.attention = TargetAttention(
            num_heads, head_units, dtype=kwargs.get("dtype")
        )

    @property
    def units(self) -> int:
        """Width of the output."""
        return self.attention.units

    def build(self, input_shape: Any) -> None:
        """Draws R; `input_shape` is that of the target."""
        self.hash_matrix = self.add_weight(
            "hash_matrix",
            [int(input_shape[-1]), self.num_bits],
            dtype=tf.float32,
            initializer="random_normal",
            trainable=False,
            experimental_autocast=False,
        )
        super().build(input_shape)

    def call(self, target: tf.Tensor, items: tf.Tensor, mask: tf.Tensor) -> tf.Tensor:
        """Returns [B, H * U]; zeros for a row without items."""
        if items.shape[1] > self.top_k:
            index = self.nearest(target, items, mask)
            items = tf.gather(items, index, batch_dims=1)
            mask = tf.gather(mask, index, batch_dims=1)
        return self.attention(target, items, mask)

    def over_ids(self, target: tf.Tensor, ids: tf.Tensor, lookup: Lookup) -> tf.Tensor:
        """Returns `call` of the items of `ids` int32 [B, L]; [B, H * U].

        Items that are not taken are looked up to be hashed, but without a gradient.
        The layer must have been built.
        """
        if ids.shape[1] > self.top_k:
            items = tf.stop_gradient(lookup(ids))
            index = self.nearest(target, items, ids != PAD_ID)
            ids = tf.gather(ids, index, batch_dims=1)
        return self.attention(target, lookup(ids), ids != PAD_ID)

    def codes(self, vectors: tf.Tensor) -> tf.Tensor:
        """Returns float32 [..., m] of -1 and 1 for vectors [..., E], no gradient."""
        vectors = tf.cast(tf.stop_gradient(vectors), tf.float32)
        signs = tf.tensordot(vectors, self.hash_matrix, 1) >= 0
        return tf.where(signs, 1.0, -1.0)

    def nearest(
        self, target: tf.Tensor, items: tf.Tensor, mask: tf.Tensor
    ) -> tf.Tensor:
        """Returns positions int32 [B, top_k] of the nearest items, nearest first.

        Raises:
          ValueError: When bits times length is more than float32 can count.
        """
        length = int(items.shape[1])
        if (self.num_bits + 2) * length >= _EXACT:
            raise ValueError(
                "HashedTargetAttention.num_bits times the sequence's length must be "
                f"below {_EXACT}; got {self.num_bits} bits, {length} items. Lower one."
            )
        alike = tf.linalg.matvec(self.codes(items), self.codes(target))  # m - 2 d
        order = alike * float(length) + tf.range(length, dtype=tf.float32)
        order = tf.where(mask, order, -float((self.num_bits + 1) * length))
        return tf.math.top_k(order, self.top_k).indices

    def get_config(self) -> dict[str, Any]:
        """Returns the config."""
        return super().get_config() | {
            "num_heads": self.num_heads,
            "head_units": self.head_units,
            "top_k": self.top_k,
            "num_bits": self.num_bits,
        }


@keras.utils.register_keras_serializable("isthmus")
class ShortLongAttention(keras.layers.Layer):
    """Sequence layer of ETA: attention over the latest items, hashed over all.

    A sequence of at most `short_length` items has the short part only: its latest
    items are all.

    Source: Chen et al. (ETA), DLP-KDD 2022, Figure 2.
    Differs: short and long sequence are one list; two kinds of behaviour log are two
      sequence features.

    Args:
      length: L of the sequence.
      num_heads: See `TargetAttention`.
      head_units: See `TargetAttention`.
      short_length: Latest items of the short part, >= 1.
      top_k: See `HashedTargetAttention`.
      num_bits: See `HashedTargetAttention`.
    """

    def __init__(
        self,
        length: int,
        num_heads: int,
        head_units: int,
        *,
        short_length: int,
        top_k: int,
        num_bits: int,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.length = length
        self.num_heads = num_heads
        self.head_units = head_units
        self.short_length = short_length
        self.top_k = top_k
        self.num_bits = num_bits
        self.short = TargetAttention(num_heads, head_units, dtype=kwargs.get("dtype"))
        self.long = None
        if length > short_length:
            self.long = HashedTargetAttention(
                num_heads,
                head_units,
                top_k=top_k,
                num_bits=num_bits,
                dtype=kwargs.get("dtype"),
            )

    def build(self, input_shape: Any) -> None:
        """Draws R; `input_shape` is that of the target."""
        if self.long is not None:
            self.long.build(input_shape)
        super().build(input_shape)

    def call(self, target: tf.Tensor, ids: tf.Tensor, lookup: Lookup) -> tf.Tensor:
        """Returns [B, H * U], or twice as wide with a long part.

        Args:
          target: [B, E].
          ids: int32 [B, L], oldest first, PAD_ID anywhere.
          lookup: Embeds ids.
        """
        recent = latest(ids, self.short_length)
        out = self.short(target, lookup(recent), recent != PAD_ID)
        if self.long is None:
            return out
        return tf.concat([out, self.long.over_ids(target, ids, lookup)], axis=-1)

    def get_config(self) -> dict[str, Any]:
        """Returns the config."""
        return super().get_config() | {
            "length": self.length,
            "num_heads": self.num_heads,
            "head_units": self.head_units,
            "short_length": self.short_length,
            "top_k": self.top_k,
            "num_bits": self.num_bits,
        }


def latest(ids: tf.Tensor, count: int) -> tf.Tensor:
    """Returns the last `count` ids [B, count] of each row that are not PAD_ID.

    Latest first where there are more than `count` places; PAD_ID fills the rest.
    """
    length = int(ids.shape[1])
    if length <= count:
        return ids
    place = tf.where(ids != PAD_ID, tf.range(length, dtype=tf.float32), -1.0)
    return tf.gather(ids, tf.math.top_k(place, count).indices, batch_dims=1)


def masked_softmax(scores: tf.Tensor, mask: tf.Tensor) -> tf.Tensor:
    """Returns softmax over the last axis where `mask` is true, exactly 0 elsewhere.

    All zeros where nothing is true; computed in float32, returned in the dtype of
    `scores`.
    """
    wide = tf.where(mask, tf.cast(scores, tf.float32), _HIDDEN)
    weights = tf.nn.softmax(wide) * tf.cast(mask, tf.float32)
    return tf.cast(weights, scores.dtype)
