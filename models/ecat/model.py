"""`ECATModel`: what serves, and the discriminator."""

from collections.abc import Mapping

import tensorflow as tf
import tf_keras as keras

from features.schema import ModelSchema
from models.ecat.config import ECATConfig
from models.layers.adaptation import Discriminator
from models.layers.adaptive_model import AdaptiveModel
from models.layers.target_model import Representation, TargetModel


class ECATModel(keras.Model):
    """What serves, and the discriminator of training."""

    def __init__(self, config: ECATConfig, schema: ModelSchema, *, use_da: bool):
        super().__init__()
        layer = (
            config.sequence_layer
            if config.architecture == "eta"
            else config.activation_layer
        )
        self.served = AdaptiveModel(
            TargetModel(schema, config, layer),
            config.taps,
            adapter_units=config.adapter_units,
            gate_units=config.gate_units if config.use_gate else None,
            entropy=config.entropy,
        )
        self.discriminator = (
            Discriminator(config.discriminator_units) if use_da else None
        )
        blocked = {f.name for f in schema.features if f.role == "domain"}
        self._blocked = blocked | set(config.domain_specific_features)

    def call(
        self, features: Mapping[str, tf.Tensor], training: bool = False
    ) -> dict[str, tf.Tensor]:
        """Returns float32 logits [B] by task."""
        return self.served(features, training=training)

    def discriminate(self, parts: Representation) -> tf.Tensor:
        """Returns the logit [B] that a row is of the target, from Phi(x).

        Phi: fields that are not domain-specific, and sequences where neither they nor
        the field they are compared with are.
        """
        target = self.served.target
        phi = [
            parts.fields[:, start:end]
            for name, (start, end) in target.embeddings.columns.items()
            if name not in self._blocked
        ]
        phi += [
            value
            for name, value in parts.by_sequence.items()
            if self._blocked.isdisjoint({name, target.targets[name]})
        ]
        if not phi:
            raise ValueError(
                "ecat.domain_specific_features must leave the discriminator a feature; "
                "got all of them. Shorten the list or set use_da: false."
            )
        if self.discriminator is None:
            raise ValueError("ecat has no discriminator: use_da is off, or no source.")
        return self.discriminator(tf.concat(phi, axis=-1))
