"""`SoftPartition`: shared and specific experts, for rows in several domains each."""

from collections.abc import Sequence
from typing import Any, Literal

import tensorflow as tf
import tf_keras as keras

from models.layers.differentiation import SoftDifferentiation, take_rows
from models.layers.domain_experts import DomainExperts
from models.layers.domain_rows import DomainRows
from models.layers.scaled_mlp import ScaledMLP

Scope = Literal["none", "experts", "all"]


class SoftPartition(keras.layers.Layer):
    """Logits of rows in their own domain and, at little more cost, in other ones.

    `z = [sum_i w_i h_i ; s]`, `w = softmax(MLP([context ; e_d]))`, h_i the shared
    experts, s the expert of the domain; a tower a task on z.  The layers of the
    shared experts are scaled by SDDN.  What does not depend on the domain (the first
    product of the shared experts, DN(e_w)) is computed once for all domains that the
    rows are looked at in.

    Source: Liu et al., 2025 (SSCTL), Eq. (1), (2) and (8).
    Differs: several tasks (a gate and a tower each); gates have no dropout.

    Args:
      num_domains: D.
      num_tasks: T.
      num_experts: m, shared experts.
      expert_units: Widths of shared and specific experts.
      gate_units: Hidden widths of the gates.
      tower_units: Hidden widths of the towers.
      combination: `concat`: z as above; `cgc`: `sum_i w_i h_i + w_{m+1} s`.
      norm: `none`, `layer` or `batch`.
      dropout: Share of activations set to 0 in training.
      scope: What SDDN scales: `none`, `experts`, or `all` hidden layers that all
        domains share (experts, gates, towers).
      differentiation: Further arguments of `SoftDifferentiation`.

    Attributes:
      is_scaled: Whether SDDN scales anything.
    """

    def __init__(
        self,
        num_domains: int,
        num_tasks: int,
        num_experts: int,
        *,
        expert_units: Sequence[int],
        gate_units: Sequence[int],
        tower_units: Sequence[int],
        combination: str,
        norm: str,
        dropout: float,
        scope: Scope,
        differentiation: dict[str, Any],
    ):
        super().__init__()
        self.num_tasks, self.num_experts = num_tasks, num_experts
        self.is_scaled = scope != "none"
        self.combination = combination
        kind: dict[str, Any] = {"norm": norm, "dropout": dropout}
        self.experts = ScaledMLP(num_experts, expert_units, **kind)
        self.specific = DomainExperts(num_domains, expert_units, **kind)
        mixed = num_experts + (combination == "cgc")
        self.gates = ScaledMLP(num_tasks, gate_units, output_units=mixed, norm=norm)
        self.towers = ScaledMLP(num_tasks, tower_units, output_units=1, **kind)
        own = {"experts": (num_experts, expert_units)} if scope != "none" else {}
        if scope == "all":
            own |= {
                "gates": (num_tasks, gate_units),
                "towers": (num_tasks, tower_units),
            }
        self.differentiation = {
            name: SoftDifferentiation(count, units, **differentiation)
            for name, (count, units) in own.items()
        }

    def call(
        self,
        x: tf.Tensor,
        context: tf.Tensor | None,
        vectors: tf.Tensor,
        soft: tf.Tensor | None,
        *,
        domains: Sequence[tf.Tensor],
        rows: Sequence[DomainRows],
        training: bool = False,
        valid: tf.Tensor | None = None,
        specific_only: bool = False,
    ) -> list[tf.Tensor]:
        """Returns logits [N, T] float32 for each of `domains`.

        Args:
          x: r_e, [N, I].
          context: Embedded context features [N, C], or None without any.
          vectors: Embedding of each domain, [D, E] float32.
          soft: e_w, [N, E] float32; None where nothing is scaled.
          domains: Domain index of each row, int32 [N]: first the rows' own domain,
            then other ones to look at them in.
          rows: The layout of the rows by each of them.
          training: Whether dropout and batch statistics are on.
          valid: bool [N], rows that batch statistics count.
          specific_only: Of all but the first of `domains`, the gradient reaches the
            specific experts' weights alone.
        """
        kept = [specific_only and i > 0 for i in range(len(domains))]

        def stop(parts: Sequence[tf.Tensor]) -> list[tf.Tensor]:
            pairs = zip(parts, kept, strict=True)
            return [
                tf.stop_gradient(part) if frozen else part for part, frozen in pairs
            ]

        scales = {
            name: layer(vectors, soft, domains)
            for name, layer in self.differentiation.items()
        }
        mode: dict[str, Any] = {"training": training, "valid": valid}
        vectors = tf.cast(vectors, x.dtype)
        shared = self.experts([x], scales.get("experts", ()), **mode)
        shared = shared * (len(domains) // len(shared))
        own = self.specific(stop([x] * len(domains)), rows, domains, **mode)
        side = [self._side(context, vectors, domain) for domain in domains]
        gates = self.gates(side, scales.get("gates", ()), **mode)
        gates = [tf.nn.softmax(tf.cast(g, tf.float32)) for g in gates]
        inputs = [
            self._combine(*parts)
            for parts in zip(stop(gates), stop(shared), own, strict=True)
        ]
        by_layer = [stop(own) for own in zip(*scales.get("towers", ()), strict=True)]
        of_towers = list(zip(*by_layer, strict=True))
        logits = self.towers(inputs, of_towers, frozen=kept, **mode)
        return [tf.transpose(tf.cast(z[..., 0], tf.float32)) for z in logits]

    def _side(
        self, context: tf.Tensor | None, vectors: tf.Tensor, domain: tf.Tensor
    ) -> tf.Tensor:
        """Returns r_g, [N, C + E]."""
        own = take_rows(vectors[tf.newaxis], domain)[0]
        return own if context is None else tf.concat([context, own], axis=-1)

    def _combine(
        self, gates: tf.Tensor, shared: tf.Tensor, own: tf.Tensor
    ) -> tf.Tensor:
        """Returns z of every task, [T, N, .], of gates [T, N, .] and [m, N, H]."""
        gates = tf.cast(gates, shared.dtype)
        parts = []
        for gate in tf.unstack(gates, num=self.num_tasks):
            weights = tf.transpose(gate)[..., tf.newaxis]
            mixed = tf.reduce_sum(weights[: self.num_experts] * shared, axis=0)
            if self.combination == "cgc":
                parts.append(mixed + weights[-1] * own)
            else:
                parts.append(tf.concat([mixed, own], axis=-1))
        return tf.stack(parts)
