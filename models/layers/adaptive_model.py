"""`AdaptiveModel`: a target model with adapted representations fused into it."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import tensorflow as tf
import tf_keras as keras

from models.layers.adaptation import Adapter, EntropyHead, SigmoidGate, binary_entropy
from models.layers.target_model import Representation, TargetModel

Source = Callable[[Mapping[str, tf.Tensor]], Representation]


class Forward(NamedTuple):
    """One pass.

    Attributes:
      logits: [B, T] float32.
      parts: Of the target model, before the fusion.
      adapted: e_a by layer, [B, width].
      gates: g by layer, [B, 1] float32; 1 without a gate.
      entropy: [B, T] float32 bits, detached; None where nothing needs it.
      guess: Logits [B, T] of the entropy head; None without one.
    """

    logits: tf.Tensor
    parts: Representation
    adapted: dict[str, tf.Tensor]
    gates: dict[str, tf.Tensor]
    entropy: tf.Tensor | None
    guess: tf.Tensor | None


class AdaptiveModel(keras.Model):
    """`e_f = e_t + g e_a` in each tapped layer of a target model, then its network.

    `e_a = adapter(sg(e_t))`, `g = sigmoid(MLP([e_a, sg(e_t), H]))`, H the entropy of
    the target model's prediction without fusion.

    Args:
      target: T.
      taps: Layers to adapt: `fields`, `sequence` or both.
      adapter_units: Hidden widths of an adapter; empty = one as wide as its layer.
      gate_units: Hidden widths of the gate; None = no gate, g is 1.
      entropy: `head`, `base_pass` (the network once more, unfused), or None.
      source: Gives e_s as a further input of the gate; None = no such input.
    """

    def __init__(
        self,
        target: TargetModel,
        taps: tuple[str, ...],
        *,
        adapter_units: tuple[int, ...],
        gate_units: tuple[int, ...] | None,
        entropy: str | None,
        source: Source | None = None,
    ):
        super().__init__()
        self.target = target
        self.taps = taps
        self.adapters = {tap: Adapter(adapter_units) for tap in taps}
        gated = taps if gate_units is not None else ()
        self.gates = {tap: SigmoidGate(gate_units or ()) for tap in gated}
        self.entropy = entropy
        num_tasks = target.schema.num_tasks
        self.entropy_head = EntropyHead(num_tasks) if entropy == "head" else None
        self.source = source

    def call(
        self, features: Mapping[str, tf.Tensor], training: bool = False
    ) -> dict[str, tf.Tensor]:
        """Returns float32 logits [B] by task; see `TargetModel.call`."""
        logits = self.forward(features, training).logits
        tasks = self.target.schema.tasks
        return dict(zip(tasks, tf.unstack(logits, axis=1), strict=True))

    def forward(
        self, features: Mapping[str, tf.Tensor], training: bool = False
    ) -> Forward:
        """Returns logits and all that losses need."""
        valid = features.get("valid")
        parts = self.target.represent(features)
        guess = self._guess(parts)
        entropy = None if guess is None else tf.stop_gradient(binary_entropy(guess))
        source = None if self.source is None else self.source(features)
        adapted, gates, fused = {}, {}, {}
        for tap in self.taps:
            own = getattr(parts, tap)
            # Detached: neither loss of the adapter moves T through its input.
            adapted[tap] = self.adapters[tap](tf.stop_gradient(own))
            inputs = [adapted[tap], tf.stop_gradient(own)]
            if source is not None:
                inputs.append(tf.cast(getattr(source, tap), own.dtype))
            gates[tap] = self._gate(tap, inputs, entropy)
            fused[tap] = own + tf.cast(gates[tap], own.dtype) * adapted[tap]
        upper = parts._replace(**fused)
        logits = self.target.upper(upper.fields, upper.sequence, training, valid)
        own_guess = guess if self.entropy_head is not None else None
        return Forward(logits, parts, adapted, gates, entropy, own_guess)

    def _guess(self, parts: Representation) -> tf.Tensor | None:
        """Returns logits of T without fusion, or the head's guess at them."""
        if self.entropy_head is not None:
            return self.entropy_head(tf.concat([parts.fields, parts.sequence], -1))
        if self.entropy == "base_pass":
            # Inference mode: batch statistics and dropout belong to the fused pass.
            return self.target.upper(parts.fields, parts.sequence)
        return None

    def _gate(
        self, tap: str, inputs: list[tf.Tensor], entropy: tf.Tensor | None
    ) -> tf.Tensor:
        if tap not in self.gates:
            return tf.ones_like(inputs[0][:, :1], tf.float32)
        if entropy is not None:
            inputs = [*inputs, tf.cast(entropy, inputs[0].dtype)]
        return self.gates[tap](tf.concat(inputs, axis=-1))
