"""`FieldEmbeddings`: from ids and numbers of a row to one vector."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import tensorflow as tf
import tf_keras as keras

from features.schema import FeatureInfo
from features.spec import PAD_ID, UNKNOWN_ID
from models.layers.grown_tables import Stack

DOMAIN_KEY = "domain"


@dataclasses.dataclass(frozen=True)
class _Group:
    """Fields whose tables lie in one variable, one table after the other."""

    width: int
    num_rows: int
    singles: tuple[FeatureInfo, ...]
    lists: tuple[FeatureInfo, ...]
    offsets: Mapping[str, int]  # first row of each table


@keras.utils.register_keras_serializable("isthmus")
class FieldEmbeddings(keras.layers.Layer):
    """Looks up, pools and concatenates the fields of a row: features -> [B, I].

    Small tables of equal width lie in one variable and are read by one gather for
    all single-id fields and one for all list fields (which are averaged over their
    ids, PAD_ID left out).  Larger tables have a variable of their own.  An id outside
    its table is read as UNKNOWN_ID on every device.  The row of PAD_ID is zero and
    gets no gradient.  Gradients of the tables are `tf.IndexedSlices`.

    Differs: none (no paper; own layer).

    Args:
      features: Fields, as `FeatureInfo` or their dicts; order does not matter.
      stddev: Standard deviation of the normal initial values, > 0.
      shared_rows: Tables with at most so many rows are put together.
      copies: Equal parts that the ids of each table make up, one after the other, such
        as one for each source; each grows by itself.
    """

    def __init__(
        self,
        features: Sequence[FeatureInfo | Mapping[str, Any]],
        *,
        stddev: float = 0.01,
        shared_rows: int = 1_000_000,
        copies: int = 1,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.features = tuple(
            f if isinstance(f, FeatureInfo) else FeatureInfo(**f) for f in features
        )
        if not self.features:
            raise ValueError(
                "FieldEmbeddings.features must hold at least one field; got none. "
                "Check the roles or names left out."
            )
        if not stddev > 0:
            raise ValueError(f"FieldEmbeddings.stddev must be > 0; got {stddev}.")
        self.stddev = stddev
        self.shared_rows = shared_rows
        self.copies = copies
        self._groups = _group(self.features, shared_rows)
        self._numbers = [f for f in self.features if f.kind == "number"]

    @property
    def width(self) -> int:
        """I: widths of all fields together."""
        return sum(f.width for f in self.features)

    def build(self, input_shape: Any) -> None:
        """Creates one variable per group of tables."""
        self.tables = []
        for index, group in enumerate(self._groups):
            pads = _pad_rows(group)
            self.tables.append(
                self.add_weight(
                    f"embedding_table_{index}_width_{group.width}",
                    [group.num_rows, group.width],
                    initializer=_TableInitializer(self.stddev, pads),
                )
            )
        super().build(input_shape)

    def table_rows(self) -> dict[str, tuple[tf.Variable, int, int]]:
        """Returns where each table lies: {table: (variable, first row, last + 1)}."""
        sizes = {f.table: f.num_ids for f in self.features}
        return {
            name: (variable, first, first + sizes[name])
            for group, variable in zip(self._groups, self.tables, strict=True)
            for name, first in group.offsets.items()
        }

    def stacks(self) -> list[tuple[tf.Variable, Stack]]:
        """Returns every table and its variable; the layer must be built."""
        sizes = {f.table: f.num_ids // self.copies for f in self.features}
        return [
            (variable, Stack(name, first, sizes[name], self.copies))
            for group, variable in zip(self._groups, self.tables, strict=True)
            for name, first in group.offsets.items()
        ]

    def call(self, features: Mapping[str, tf.Tensor]) -> tf.Tensor:
        """Returns all fields, concatenated.

        Single-id fields first, then lists, then numbers, each in the given order
        (by width group).

        Args:
          features: As `Batch.features`: int32 [B] or [B, L], float32 [B].

        Returns:
          [B, I] in the compute dtype.
        """
        parts = []
        for group, table in zip(self._groups, self.tables, strict=True):
            if group.singles:
                rows = self._single_rows(features, group, table)
                size = len(group.singles) * group.width
                parts.append(tf.reshape(rows, [-1, size]))
        for group, table in zip(self._groups, self.tables, strict=True):
            parts += list(self._pooled(features, group, table).values())
        if self._numbers:
            parts.append(self._number_columns(features))
        return parts[0] if len(parts) == 1 else tf.concat(parts, axis=-1)

    def by_field(self, features: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Returns each field apart: {name: [B, width]}, lists pooled.

        The layer must have been built (called once).
        """
        out: dict[str, tf.Tensor] = {}
        for group, table in zip(self._groups, self.tables, strict=True):
            if group.singles:
                rows = self._single_rows(features, group, table)
                names = [f.name for f in group.singles]
                out |= dict(zip(names, tf.unstack(rows, axis=1), strict=True))
            out |= self._pooled(features, group, table)
        if self._numbers:
            columns = self._number_columns(features)
            for i, info in enumerate(self._numbers):
                out[info.name] = columns[:, i : i + 1]
        return {f.name: out[f.name] for f in self.features}

    def sequence(
        self, features: Mapping[str, tf.Tensor], name: str
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns one list field unpooled: [B, L, width] and its bool mask [B, L]."""
        for group, table in zip(self._groups, self.tables, strict=True):
            for info in group.lists:
                if info.name == name:
                    ids = features[name]
                    return self._list_rows([ids], [info], group, table), ids != PAD_ID
        known = ", ".join(f.name for g in self._groups for f in g.lists) or "(none)"
        raise LookupError(
            f"FieldEmbeddings.sequence name must be one of {known}; got {name!r}."
        )

    def lookup(self, name: str, ids: tf.Tensor) -> tf.Tensor:
        """Returns rows of one field's table for any ids [B, N]: [B, N, width]."""
        for group, table in zip(self._groups, self.tables, strict=True):
            for info in (*group.singles, *group.lists):
                if info.name == name:
                    infos = [info] * ids.shape[1]
                    sizes = [info.num_ids] * ids.shape[1]
                    return self._gather(table, ids, sizes, infos, group, ids == PAD_ID)
        known = ", ".join(f.name for f in self.features if f.kind != "number")
        raise LookupError(
            f"FieldEmbeddings.lookup name must be one of {known}; got {name!r}."
        )

    def _single_rows(
        self, features: Mapping[str, tf.Tensor], group: _Group, table: tf.Variable
    ) -> tf.Tensor:
        """Returns [B, fields, width]."""
        ids = tf.stack([_ids(features, f) for f in group.singles], axis=1)
        sizes = [f.num_ids for f in group.singles]
        real = [f.role != "domain" for f in group.singles]
        is_pad = tf.logical_and(ids == PAD_ID, tf.constant(real, tf.bool))
        return self._gather(table, ids, sizes, group.singles, group, is_pad)

    def _list_rows(
        self,
        columns: Sequence[tf.Tensor],
        infos: Sequence[FeatureInfo],
        group: _Group,
        table: tf.Variable,
    ) -> tf.Tensor:
        """Returns [B, all lengths, width]."""
        ids = tf.concat(columns, axis=1)
        repeated = [f for f in infos for _ in range(f.length)]
        sizes = [f.num_ids for f in repeated]
        return self._gather(table, ids, sizes, repeated, group, ids == PAD_ID)

    def _gather(
        self,
        table: tf.Variable,
        ids: tf.Tensor,
        sizes: Sequence[int],
        infos: Sequence[FeatureInfo],
        group: _Group,
        is_pad: tf.Tensor,
    ) -> tf.Tensor:
        known = tf.logical_and(ids >= 0, ids < tf.constant(sizes, ids.dtype))
        offsets = tf.constant([group.offsets[f.table] for f in infos], ids.dtype)
        ids = tf.where(known, ids, UNKNOWN_ID) + offsets
        rows = tf.cast(tf.gather(table, ids), self.compute_dtype)
        return _mask_gradient(rows, tf.logical_not(is_pad))

    def _pooled(
        self, features: Mapping[str, tf.Tensor], group: _Group, table: tf.Variable
    ) -> dict[str, tf.Tensor]:
        """Returns {name: [B, width]}: means over the ids that are not PAD_ID."""
        if not group.lists:
            return {}
        columns = [features[f.name] for f in group.lists]
        rows = self._list_rows(columns, group.lists, group, table)
        parts = tf.split(rows, [f.length for f in group.lists], axis=1)
        out = {}
        for info, ids, part in zip(group.lists, columns, parts, strict=True):
            count = tf.reduce_sum(
                tf.cast(ids != PAD_ID, part.dtype), axis=1, keepdims=True
            )
            # The row of PAD_ID is zero, so the sum needs no mask.
            out[info.name] = tf.reduce_sum(part, axis=1) / tf.maximum(count, 1)
        return out

    def _number_columns(self, features: Mapping[str, tf.Tensor]) -> tf.Tensor:
        columns = [features[f.name] for f in self._numbers]
        return tf.cast(tf.stack(columns, axis=1), self.compute_dtype)

    def get_config(self) -> dict[str, Any]:
        """Returns the config."""
        return super().get_config() | {
            "features": [dataclasses.asdict(f) for f in self.features],
            "stddev": self.stddev,
            "shared_rows": self.shared_rows,
            "copies": self.copies,
        }


@keras.utils.register_keras_serializable("isthmus")
class _TableInitializer(keras.initializers.Initializer):
    """Normal values; rows `zero_rows` (those of PAD_ID) are zero."""

    def __init__(self, stddev: float, zero_rows: Sequence[int]):
        self.stddev = stddev
        self.zero_rows = list(zero_rows)

    def __call__(self, shape: Any, dtype: Any = tf.float32, **kwargs: Any) -> tf.Tensor:
        del kwargs
        values = keras.initializers.RandomNormal(stddev=self.stddev)(shape, dtype)
        if not self.zero_rows:
            return values
        return tf.tensor_scatter_nd_update(
            values,
            [[row] for row in self.zero_rows],
            tf.zeros([len(self.zero_rows), shape[1]], dtype),
        )

    def get_config(self) -> dict[str, Any]:
        return {"stddev": self.stddev, "zero_rows": self.zero_rows}


def _mask_gradient(rows: tf.Tensor, keep: tf.Tensor) -> tf.Tensor:
    """Returns `rows` [B, N, E]; gradients pass only where `keep` [B, N]."""

    @tf.custom_gradient
    def op(rows: tf.Tensor) -> tuple[tf.Tensor, Callable]:
        return tf.identity(rows), lambda up: up * tf.cast(keep, up.dtype)[..., None]

    return op(rows)


def _ids(features: Mapping[str, tf.Tensor], info: FeatureInfo) -> tf.Tensor:
    return features[DOMAIN_KEY if info.role == "domain" else info.name]


def _group(features: Sequence[FeatureInfo], shared_rows: int) -> list[_Group]:
    """Groups fields by the variable that their table is in, in order of appearance."""
    grouped: dict[Any, list[FeatureInfo]] = {}
    for info in features:
        if info.kind != "number":
            own = info.table if info.num_ids > shared_rows else ""
            grouped.setdefault((info.width, own), []).append(info)
    result = []
    for (width, _), infos in grouped.items():
        offsets: dict[str, int] = {}
        num_rows = 0
        for info in infos:
            if info.table not in offsets:
                offsets[info.table] = num_rows
                num_rows += info.num_ids
        result.append(
            _Group(
                width,
                num_rows,
                tuple(f for f in infos if f.kind == "id"),
                tuple(f for f in infos if f.kind != "id"),
                offsets,
            )
        )
    return result


def _pad_rows(group: _Group) -> list[int]:
    domain_tables = {
        f.table for f in (*group.singles, *group.lists) if f.role == "domain"
    }
    return [
        first + PAD_ID
        for table, first in group.offsets.items()
        if table not in domain_tables
    ]
