"""`CompanionModel`: a mixed and a pure tower on dual embeddings (SCN and IFN)."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import tensorflow as tf
import tf_keras as keras

from features.schema import FeatureInfo
from models.cctl.transfer import Transfer
from models.layers.mlp import MLP
from models.layers.selector import Selector
from models.layers.source_network import SemanticAlign
from models.layers.tokens import TokenEmbeddings


class TowerModel(keras.Model):
    """Embeddings and one tower: features -> logits by task, whatever the domain."""

    def __init__(
        self, embeddings: TokenEmbeddings, tower: MLP, tasks: Sequence[str]
    ) -> None:
        super().__init__()
        self.embeddings, self.tower, self.tasks = embeddings, tower, tuple(tasks)

    def call(
        self, features: Mapping[str, tf.Tensor], training: bool = False
    ) -> dict[str, tf.Tensor]:
        """Returns float32 logits [B] by task."""
        logits = tower_logits(self.tower, self.embeddings(features), training)
        return dict(zip(self.tasks, tf.unstack(logits, axis=1), strict=True))


class CompanionModel(keras.Model):
    """Two equal towers; source rows go through the mixed one only.

    Source: Zhang et al., KDD 2023 (CCTL), Sections 2.3 and 2.4, Figures 1-3.
    Differs: no attention between item and behaviours (histories are averaged).

    Args:
      transfer: Target, sources, fields.
      tasks: Names of the T tasks.
      hidden_units: Widths of the hidden layers of a tower.
      norm: `none` or `layer`, in the towers.
      stddev: Of initial embeddings.
      separate: Whether each tower has its own embeddings of the target.
      served: Tower that target rows are scored by, `mixed` or `pure`.
      own_source: Whether source rows have embeddings of their own, E^s; else they are
        read by the mixed tower's E^t, and must have its fields.
      selector_units: Hidden widths of the selector; None = no selector.
      san_units: Hidden widths of the semantic alignment.

    Attributes:
      target: E^t, of the mixed tower (and of the pure one, unless separate).
      pure_target: E^t of the pure tower.
      source: E^s (E^t without tables of its own), or None without sources.
      align: SAN, or None where source and target rows have the same fields.
      selector: The selector, or None.
      mixed: The mixed tower.
      pure: The pure tower.
    """

    def __init__(
        self,
        transfer: Transfer,
        tasks: Sequence[str],
        *,
        hidden_units: Sequence[int],
        norm: str = "none",
        stddev: float = 0.01,
        separate: bool = False,
        served: Literal["mixed", "pure"] = "pure",
        own_source: bool = True,
        selector_units: Sequence[int] | None = (64, 32),
        san_units: Sequence[int] = (64,),
    ):
        super().__init__()
        self.transfer, self.tasks, self.served = transfer, tuple(tasks), served
        self.target = TokenEmbeddings(transfer.target_fields, stddev=stddev)
        self.pure_target = (
            TokenEmbeddings(transfer.target_fields, stddev=stddev)
            if separate
            else self.target
        )
        self.mixed, self.pure = (
            MLP(hidden_units, output_units=len(tasks), norm=norm) for _ in range(2)
        )
        # Any: each is there or not by the config, and its users ask.
        self.source: Any = None
        self.align: Any = None
        self.selector: Any = None
        count = len(transfer.sources)
        if count:
            self.source = self.target
            if own_source:
                self.source = TokenEmbeddings(
                    transfer.source_fields, num_sources=count, stddev=stddev
                )
            elif not transfer.same_fields:
                raise ValueError(
                    "CCTL.source_embedding can be `target` only where source rows have "
                    "the target's features; leave source_features and target_features "
                    f"equal; got {_names(transfer.source_fields)} and "
                    f"{_names(transfer.target_fields)}."
                )
            if not transfer.same_fields:
                self.align = SemanticAlign(
                    count, self.source.widths, self.target.widths, san_units
                )
            if selector_units is not None:
                self.selector = Selector(count, selector_units)

    def create(self, features: Mapping[str, tf.Tensor]) -> None:
        """Creates every variable, those that `call` does not read too."""
        x = self.target(features)
        tower_logits(self.mixed, x)
        tower_logits(self.pure, self.pure_target(features))
        if self.source is not None:
            index = self.source_index(features)
            x = self.source_rows(features, index)
            if self.selector is not None:
                self.selector(x, index)

    def source_index(self, features: Mapping[str, tf.Tensor]) -> tf.Tensor:
        """Returns each row's place among the sources, int32 [B]; 0 for other rows."""
        index = tf.constant(self.transfer.source_index, tf.int32)
        return tf.gather(index, features["domain"])

    def source_rows(
        self, features: Mapping[str, tf.Tensor], index: tf.Tensor
    ) -> tf.Tensor:
        """Returns v_s' [B, I] of rows of sources `index`, in the target's widths."""
        x = self.source(features, index)
        return x if self.align is None else self.align(x, index)

    def call(
        self, features: Mapping[str, tf.Tensor], training: bool = False
    ) -> dict[str, tf.Tensor]:
        """Returns float32 logits [B] by task, each row's by its own path.

        A row of a source goes by E^s, SAN and the mixed tower; all others by E^t and
        the tower that is served.  Every row is computed both ways: training and serving
        use the parts instead.
        """
        if self.served == "mixed":
            logits = tower_logits(self.mixed, self.target(features), training)
        else:
            logits = tower_logits(self.pure, self.pure_target(features), training)
        if self.source is not None:
            x = self.source_rows(features, self.source_index(features))
            is_source = tf.constant(
                [d in self.transfer.sources for d in self.transfer.domains]
            )
            logits = tf.where(
                tf.gather(is_source, features["domain"])[:, tf.newaxis],
                tower_logits(self.mixed, x, training),
                logits,
            )
        return dict(zip(self.tasks, tf.unstack(logits, axis=1), strict=True))

    def twins(self) -> tuple[list[tf.Variable], list[tf.Variable]]:
        """Returns the variables of the mixed side, and those of the pure side."""
        mixed, pure = list(self.mixed.variables), list(self.pure.variables)
        if self.pure_target is not self.target:
            mixed += self.target.variables
            pure += self.pure_target.variables
        return mixed, pure


def _names(fields: Sequence[FeatureInfo]) -> str:
    return ", ".join(f.name for f in fields) or "none"


def tower_logits(tower: MLP, x: tf.Tensor, training: bool = False) -> tf.Tensor:
    """Returns logits [B, T] float32."""
    return tf.cast(tower(x, training=training), tf.float32)
