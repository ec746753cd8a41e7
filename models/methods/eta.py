"""ETA: attention over the latest items, and over the nearest by hash of all."""

from models.layers.target_model import (
    HashedAttentionSettings,
    TargetModel,
    TargetModelSettings,
)
from models.method import Method, MethodConfig
from models.optimizers.groups import GroupConfig, OptimizerConfig


class ETAConfig(HashedAttentionSettings, TargetModelSettings, MethodConfig):
    """Settings of `eta`."""

    optimizer: OptimizerConfig = OptimizerConfig(
        embedding=GroupConfig(kind="adagrad_decay", learning_rate=0.01),
        dense=GroupConfig(kind="adagrad_decay", learning_rate=0.01),
    )


class ETA(Method):
    """End-to-end target attention, one network for all domains.

    Source: Chen et al., "Efficient Long Sequential User Data Modeling for
    Click-Through Rate Prediction", DLP-KDD 2022; widths and optimiser of Hou et al.,
    SIGIR 2024 (ECAT), section 3.1.3, whose target and source model it is.
    Differs: layer normalisation in the blocks (`norm: none` leaves it out); every
    sequence feature has an attention of its own; a sequence no longer than
    `short_length` is not hashed.
    """

    Config = ETAConfig
    config: ETAConfig

    def build_model(self) -> TargetModel:
        """Returns the model."""
        return TargetModel(self.schema, self.config, self.config.sequence_layer)
