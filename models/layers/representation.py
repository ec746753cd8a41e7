"""Representation enhancement (REN): keep ids of two domains apart, users together."""

from collections.abc import Mapping, Sequence
from typing import Literal

import tensorflow as tf

from features.spec import PAD_ID, UNKNOWN_ID
from models.layers.grown_tables import Stack
from models.layers.tokens import TokenEmbeddings
from models.losses import global_sum
from models.state import state_variable

MIN_NORM = 1e-6  # a shorter vector has no direction: no pair
Penalty = Literal["relu", "square", "literal"]
Side = Literal["none", "source", "target", "both"]


def cosine(a: tf.Tensor, b: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the cosine over the last axis, and where it is defined.

    Args:
      a: [..., E] any float type.
      b: [..., E], broadcasts against `a`.

    Returns:
      The cosine in [-1, 1] float32, 0 with gradient 0 where a norm is below
      `MIN_NORM`; and float32 1 where it is defined, else 0.
    """
    a, b = tf.cast(a, tf.float32), tf.cast(b, tf.float32)
    a, b = a + tf.zeros_like(b), b + tf.zeros_like(a)
    squares = [tf.reduce_sum(x * x, axis=-1, keepdims=True) for x in (a, b)]
    both = tf.logical_and(squares[0] > MIN_NORM**2, squares[1] > MIN_NORM**2)
    # Ones under the root where undefined: no infinite gradient to multiply by 0.
    roots = [tf.math.rsqrt(tf.where(both, s, tf.ones_like(s))) for s in squares]
    product = (a * roots[0]) * (b * roots[1])
    value = tf.reduce_sum(tf.where(both, product, tf.zeros_like(product)), axis=-1)
    return value, tf.cast(both[..., 0], tf.float32)


def penalty(value: tf.Tensor, kind: Penalty) -> tf.Tensor:
    """Returns what a cosine of an id's two embeddings costs.

    `relu` and `square` are least where they are orthogonal (`relu`: or opposite);
    `literal` is the cosine itself, least where one is the other's opposite, which
    carries the same information.
    """
    if kind == "relu":
        return tf.nn.relu(value)
    return value * value if kind == "square" else value


def pooled(rows: tf.Tensor, mask: tf.Tensor) -> tf.Tensor:
    """Returns the mean [B, E] float32 of rows [B, L, E] where mask [B, L] is true."""
    weights = tf.cast(mask, tf.float32)[..., tf.newaxis]
    total = tf.reduce_sum(tf.cast(rows, tf.float32) * weights, axis=1)
    return total / tf.maximum(tf.reduce_sum(weights, axis=1), 1.0)


class RepresentationEnhancement(tf.Module):
    """`mean penalty(cos(v_id^s, v_id^t)) - mean cos(v_seq^s, v_seq^t)` of target rows.

    An id of a target row is a pair with the same id of a source once a row of that
    source has had it; an id that one side alone has is left alone.  A row whose user
    has histories in both domains is a pair of pooled sequences.  Several sources give
    a pair each; the means are over pairs.

    Source: Zhang et al., KDD 2023 (CCTL), Section 2.5, Eq. (10)-(12).
    Differs: `penalty` (see there); pairs where both sides exist only.

    Args:
      ids: Names of the id fields, read in both domains.
      tables: Those of the source, for the sizes.
      sequences: Name of the target's history, then the name of each source's, or ().
      kind: The penalty.
      stop: Whose items the sequence term leaves as they are: it would pull together
        what the id term keeps apart, where that is over items.  `both`: the term is
        measured only.

    Attributes:
      seen: float32 [S * ids of the table] by field: 1 where a source row had the id.
    """

    def __init__(
        self,
        ids: Sequence[str],
        tables: TokenEmbeddings,
        *,
        sequences: Sequence[str] = (),
        kind: Penalty = "relu",
        stop: Side = "none",
    ):
        super().__init__()
        self._sequences, self._kind, self._stop = tuple(sequences), kind, stop
        fields = [f for f in tables.features if f.name in ids]
        self._sizes = {f.name: f.num_ids for f in fields}
        self._tables = {f.name: f.table for f in fields}
        self.seen = {
            name: state_variable(tf.zeros([size * tables.num_sources]), f"seen_{name}")
            for name, size in self._sizes.items()
        }
        self._num_sources = tables.num_sources

    def stacks(self) -> list[tuple[tf.Variable, Stack]]:
        """Returns the marks by table: they grow with it."""
        return [
            (self.seen[name], Stack(self._tables[name], 0, size, self._num_sources))
            for name, size in self._sizes.items()
        ]

    def share(
        self,
        features: Mapping[str, tf.Tensor],
        fields: Mapping[str, tf.Tensor],
        tables: TokenEmbeddings,
        mask: tf.Tensor,
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns this replica's shares of the loss: of ids and of sequences, float32.

        Args:
          features: Of target rows.
          fields: Their looked-up fields (`TokenEmbeddings.by_field` of the target).
          tables: Those of the source.
          mask: float32 [B], 1 for rows that count.
        """
        apart, together = [], []
        for name in self.seen:
            value, pair = self._id_pairs(name, features[name], fields[name], tables)
            apart.append((penalty(value, self._kind), pair * mask[:, tf.newaxis]))
        if self._sequences:
            own, *others = self._sequences
            for source, name in enumerate(others):
                ids = features[name]
                placed = tables.place(name, ids, tf.fill(tf.shape(ids)[:1], source))
                rows = tables.fields.lookup(name, placed)
                histories = self._held(fields[own], pooled(rows, ids != PAD_ID))
                value, pair = cosine(*histories)
                together.append((value, pair * mask))
        return _mean(apart), -_mean(together)

    def _held(self, target: tf.Tensor, source: tf.Tensor) -> list[tf.Tensor]:
        """The pooled histories, constant where `stop` says so."""
        return [
            tf.stop_gradient(x) if self._stop in ("both", side) else x
            for side, x in (("target", target), ("source", source))
        ]

    def _id_pairs(
        self, name: str, ids: tf.Tensor, own: tf.Tensor, tables: TokenEmbeddings
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Cosines and pair mask, both [B, S]."""
        known = tf.logical_and(ids > UNKNOWN_ID, ids < self._sizes[name])
        safe = tf.where(known, ids, UNKNOWN_ID)
        placed = tf.stack(
            [
                tables.place(name, safe, tf.fill(tf.shape(safe), source))
                for source in range(tables.num_sources)
            ],
            axis=1,
        )
        value, defined = cosine(own[:, tf.newaxis], tables.fields.lookup(name, placed))
        seen = tf.gather(self.seen[name], placed)
        return value, seen * defined * tf.cast(known, tf.float32)[:, tf.newaxis]

    def note(
        self,
        features: Mapping[str, tf.Tensor],
        source: tf.Tensor,
        tables: TokenEmbeddings,
        mask: tf.Tensor,
    ) -> None:
        """Marks the ids of source rows as met; in the step function.

        Args:
          features: Of source rows.
          source: Index of each row's source, int32 [B].
          tables: Those of the source.
          mask: float32 [B], 1 for rows that count.
        """
        for name, seen in self.seen.items():
            ids = features[name]
            known = tf.logical_and(ids > UNKNOWN_ID, ids < self._sizes[name])
            known = tf.logical_and(known, mask > 0)
            # The mark of PAD_ID is never read.
            placed = tf.where(known, tables.place(name, ids, source), PAD_ID)
            context = tf.distribute.get_replica_context()
            if context is not None and context.num_replicas_in_sync > 1:
                placed = context.all_gather(placed, axis=0)
            tf.raw_ops.ResourceScatterUpdate(
                resource=seen.handle,
                indices=placed,
                updates=tf.ones_like(placed, tf.float32),
            )


def _mean(pairs: Sequence[tuple[tf.Tensor, tf.Tensor]]) -> tf.Tensor:
    """This replica's share of the mean of values over their pairs; 0 without any."""
    if not pairs:
        return tf.constant(0.0)
    total = tf.add_n([tf.reduce_sum(value * pair) for value, pair in pairs])
    count = tf.add_n([tf.reduce_sum(pair) for _, pair in pairs])
    return tf.math.divide_no_nan(total, global_sum(count))
