"""`Hierarchy`: layers of few, then more experts, each domain with masks of its own."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras

from models.layers import hierarchy_math, normalise
from models.layers.initialisers import Stacked

NORMS = ("none", "layer")
GATE_PREFIX = "gate_"
DOMAIN = "gate_domain"


@keras.utils.register_keras_serializable("isthmus")
class Hierarchy(keras.layers.Layer):
    """Hierarchical expert integration with a mask for each domain.

    Expert n of layer l reads `sum_i A_{d,l}[n, i] e_{l-1,i}`, A the softmax gates of
    domain d over its kept edges.  Gates depend on the domain only, so A is computed
    once a call for all domains, [D, N_l, N_{l-1}], and gathered row by row.

    Source: Luo et al., AAAI 2025 (AREAD), Eq. (3), (4) and (7).
    Differs: gate input (the paper is silent) as in the authors' code, a vector of the
    domain and the mean vector of the active first-layer experts, here with vectors of
    the layer's own and without masks the mean of all (theirs: 0); layer normalisation
    for batch normalisation, since a search trains on rows of one domain and scores
    rows alone.

    Args:
      num_domains: D, >= 1.
      num_tasks: T, >= 1; each top expert has T outputs.
      num_experts: N_1..N_L, at least two layers.
      expert_units: Hidden widths of the experts of each layer.
      gate_width: E, >= 1.
      gate_stddev: Standard deviation of initial gate vectors, > 0.
      norm: `none` or `layer`.
      dropout: Share of activations set to 0 in training, 0 <= dropout < 1.

    Attributes:
      masks: Variables [D, N_l, N_{l+1}] float32, 1 = kept; all ones (= no mask) until
        assigned.  The layer expects live masks (`models.aread.masks.live`).
    """

    def __init__(
        self,
        num_domains: int,
        num_tasks: int,
        num_experts: Sequence[int] = (3, 6, 12),
        expert_units: Sequence[Sequence[int]] = ((64, 32), (32, 16), (16, 8)),
        *,
        gate_width: int = 16,
        gate_stddev: float = 0.1,
        norm: str = "layer",
        dropout: float = 0.0,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        check_layers("Hierarchy", num_experts, expert_units)
        self.num_domains = num_domains
        self.num_tasks = num_tasks
        self.num_experts = tuple(num_experts)
        self.expert_units = tuple(tuple(units) for units in expert_units)
        self.gate_width = gate_width
        self.gate_stddev = gate_stddev
        self.norm = normalise.check_norm("Hierarchy", norm, NORMS)
        self.dropout = dropout
        self.drops = [
            [keras.layers.Dropout(dropout) for _ in units]
            for units in self.expert_units
            if dropout
        ]

    @property
    def depths(self) -> list[int]:
        """Hidden layers of the experts, for each layer."""
        return [len(units) for units in self.expert_units]

    def build(self, input_shape: Any) -> None:
        """Creates the weights, by name in `self.named`."""
        self.named: dict[str, tf.Variable] = {}
        self._build_gates()
        width = int(input_shape[-1])
        for layer, (count, units) in enumerate(
            zip(self.num_experts, self.expert_units, strict=True)
        ):
            for i, size in enumerate(units):
                kernel = [count, width, size]
                self._add(f"kernel_{layer}_{i}", kernel, Stacked("glorot_uniform"))
                self._add(f"bias_{layer}_{i}", [count, size], "zeros")
                if self.norm == "layer":
                    self._add(f"gamma_{layer}_{i}", [count, size], "ones")
                    self._add(f"beta_{layer}_{i}", [count, size], "zeros")
                width = size
        top = [self.num_experts[-1], width, self.num_tasks]
        self._add("out_kernel", top, Stacked("glorot_uniform"))
        self._add("out_bias", [top[0], top[2]], "zeros")
        super().build(input_shape)

    def _build_gates(self) -> None:
        normal = {
            "class_name": "RandomNormal",
            "config": {"stddev": self.gate_stddev},
        }
        width = self.gate_width
        self._add(DOMAIN, [self.num_domains, width], normal)
        self._add("gate_experts", [self.num_experts[0], width], normal)
        self.masks = []
        pairs = zip(self.num_experts, self.num_experts[1:], strict=False)
        for layer, (below, above) in enumerate(pairs, start=1):
            kernel = [above, 2 * width, below]
            self._add(f"gate_kernel_{layer}", kernel, Stacked("glorot_uniform"))
            self._add(f"gate_bias_{layer}", [above, below], "zeros")
            self.masks.append(
                self.add_weight(
                    f"mask_{layer}",
                    [self.num_domains, below, above],
                    initializer="ones",
                    dtype=tf.float32,
                    trainable=False,
                    experimental_autocast=False,
                )
            )

    def _add(self, name: str, shape: list[int], initializer: Any) -> None:
        # Gates are small and decide everything: float32 under any policy.
        is_gate = name.startswith(GATE_PREFIX)
        self.named[name] = self.add_weight(
            name,
            shape,
            initializer=keras.initializers.get(initializer),
            experimental_autocast=not is_gate,
        )

    def logits_of_gates(self) -> list[tf.Tensor]:
        """Returns gate logits [D, N_{l+1}, N_l] float32 under the present masks."""
        first_active = tf.reduce_max(self.masks[0], axis=2)
        vectors = tf.convert_to_tensor(self.named[DOMAIN])
        count = len(self.num_experts)
        return hierarchy_math.gate_logits(self.named, vectors, first_active, count)

    def gates(self) -> list[tf.Tensor]:
        """Returns gates over all edges, kept or not: [D, N_{l+1}, N_l] float32."""
        return [tf.nn.softmax(logits) for logits in self.logits_of_gates()]

    def mixing(self) -> list[tf.Tensor]:
        """Returns A, the effective mixing weights: [D, N_{l+1}, N_l] float32."""
        return [
            hierarchy_math.mixing(logits, mask)
            for logits, mask in zip(self.logits_of_gates(), self.masks, strict=True)
        ]

    def active_outputs(self) -> tf.Tensor:
        """Returns [D, N_L] float32: 1 for each domain's active outputs."""
        return tf.reduce_max(self.masks[-1], axis=1)

    def call(
        self, x: tf.Tensor, domain: tf.Tensor, training: bool = False
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns all outputs, and which of them are active.

        Args:
          x: Inputs of the first layer's experts, [N_1, B, I].
          domain: int32 [B].
          training: Whether dropout is on.

        Returns:
          Logits [N_L, B, T] in the compute dtype; [N_L, B, 1] float32, 1 = active in
          the row's domain.
        """
        weights = {
            name: tf.convert_to_tensor(variable)
            for name, variable in self.named.items()
            if not name.startswith(GATE_PREFIX)
        }
        matrices = [tf.cast(a, self.compute_dtype) for a in self.mixing()]
        outputs = hierarchy_math.run_experts(
            weights,
            x,
            lambda layer, e: mix_rows(matrices[layer - 1], domain, e),
            self.depths,
            norm=self.norm,
            drop=(lambda l, i, z: self.drops[l][i](z, training=training))
            if self.drops
            else None,
        )
        active = tf.gather(self.active_outputs(), domain)  # [B, N_L]
        return outputs, tf.transpose(active)[..., tf.newaxis]

    def folded(self) -> "FoldedHierarchy":
        """Returns a layer on the same experts with masks and gates of now folded."""
        matrices = [a.numpy() for a in self.mixing()]
        return FoldedHierarchy(self, matrices, self.active_outputs().numpy())

    def get_config(self) -> dict[str, Any]:
        """Returns the config."""
        return super().get_config() | {
            "num_domains": self.num_domains,
            "num_tasks": self.num_tasks,
            "num_experts": self.num_experts,
            "expert_units": self.expert_units,
            "gate_width": self.gate_width,
            "gate_stddev": self.gate_stddev,
            "norm": self.norm,
            "dropout": self.dropout,
        }


class FoldedHierarchy(keras.layers.Layer):
    """A `Hierarchy` whose mixing weights are constants: no gates, no masks.

    Args:
      source: Its expert weights are shared.
      matrices: A for each layer above the first, [D, N_{l+1}, N_l] float32.
      active: [D, N_L] float32.
    """

    def __init__(
        self, source: Hierarchy, matrices: Sequence[np.ndarray], active: np.ndarray
    ):
        super().__init__(dtype=source.dtype_policy)
        self.named = {
            name: variable
            for name, variable in source.named.items()
            if not name.startswith(GATE_PREFIX)
        }
        self.depths, self.norm = source.depths, source.norm
        self.matrices, self.active = matrices, active

    def call(
        self, x: tf.Tensor, domain: tf.Tensor, training: bool = False
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns what `Hierarchy.call` does."""
        del training
        matrices = [tf.constant(a, self.compute_dtype) for a in self.matrices]
        outputs = hierarchy_math.run_experts(
            {name: tf.convert_to_tensor(v) for name, v in self.named.items()},
            x,
            lambda layer, e: mix_rows(matrices[layer - 1], domain, e),
            self.depths,
            norm=self.norm,
        )
        active = tf.gather(tf.constant(self.active), domain)
        return outputs, tf.transpose(active)[..., tf.newaxis]


def mix_rows(matrices: tf.Tensor, domain: tf.Tensor, e: tf.Tensor) -> tf.Tensor:
    """Returns [N, B, h]: experts e [M, B, h] mixed by each row's own of [D, N, M]."""
    rows_first = tf.transpose(e, [1, 0, 2])
    mixed = tf.matmul(tf.gather(matrices, domain), rows_first)
    return tf.transpose(mixed, [1, 0, 2])


def check_layers(
    owner: str, num_experts: Sequence[int], expert_units: Sequence[Sequence[int]]
) -> None:
    """Raises a ValueError for layers that cannot be.

    Args:
      owner: Named in the error.
      num_experts: N_1..N_L.
      expert_units: Hidden widths for each layer.
    """
    if len(num_experts) < 2 or min(num_experts) < 1:
        raise ValueError(
            f"{owner}.num_experts must hold two or more layers of at least one expert; "
            f"got {tuple(num_experts)}."
        )
    if len(expert_units) != len(num_experts) or not all(map(len, expert_units)):
        raise ValueError(
            f"{owner}.expert_units must hold the hidden widths, at least one, of each "
            f"of the {len(num_experts)} layers of num_experts; got "
            f"{tuple(map(tuple, expert_units))}."
        )
