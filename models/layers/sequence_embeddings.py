"""`SequenceEmbeddings`: the fields of a row, with its sequences left unpooled."""

import dataclasses
from collections.abc import Mapping

import tensorflow as tf
import tf_keras as keras

from features.schema import FeatureInfo
from models.layers.embeddings import FieldEmbeddings, _Group


@keras.utils.register_keras_serializable("isthmus")
class SequenceEmbeddings(FieldEmbeddings):
    """`FieldEmbeddings` whose call leaves sequences out; `lookup` embeds their ids.

    Sequences share tables with the fields they are histories of.  Only ids that are
    looked up get a gradient, so a model that attends to a few items of a long sequence
    updates the rows of those only.

    Differs: none (no paper; own layer).
    """

    @property
    def width(self) -> int:
        """I: widths of all fields but the sequences."""
        return sum(f.width for f in self.features if f.kind != "sequence")

    @property
    def sequences(self) -> tuple[FeatureInfo, ...]:
        """The sequence features, in the given order."""
        return tuple(f for f in self.features if f.kind == "sequence")

    @property
    def columns(self) -> dict[str, tuple[int, int]]:
        """First and last + 1 column of each field in the output of the call."""
        order = [f for group in self._groups for f in group.singles]
        order += [f for group in self._groups for f in _pooled_lists(group)]
        order += self._numbers
        columns, start = {}, 0
        for info in order:
            columns[info.name] = (start, start + info.width)
            start += info.width
        return columns

    def target_of(self, name: str) -> str:
        """Returns the field of the row's own item that a sequence is a history of.

        Raises:
          LookupError: When no single-id field has the sequence's table.
        """
        table = next(f.table for f in self.sequences if f.name == name)
        fields = [f.name for f in self.features if f.kind == "id" and f.table == table]
        if not fields:
            raise LookupError(
                f"sequence {name!r} must have a single-id field with its table "
                f"{table!r} to be compared with; there is none. Add the feature it is "
                "a history of."
            )
        return table if table in fields else fields[0]

    def by_field(self, features: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Returns each field but the sequences apart: {name: [B, width]}."""
        out = self(features)
        return {name: out[:, i:j] for name, (i, j) in self.columns.items()}

    def _pooled(
        self, features: Mapping[str, tf.Tensor], group: _Group, table: tf.Variable
    ) -> dict[str, tf.Tensor]:
        lists = _pooled_lists(group)
        return super()._pooled(features, dataclasses.replace(group, lists=lists), table)


def _pooled_lists(group: _Group) -> tuple[FeatureInfo, ...]:
    return tuple(f for f in group.lists if f.kind != "sequence")
