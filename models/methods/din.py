"""DIN: the row's item weighs the user's earlier ones by a small network."""

from pydantic import Field

from models.layers.target_model import (
    LocalActivationSettings,
    TargetModel,
    TargetModelSettings,
)
from models.method import Method, MethodConfig


class DINConfig(LocalActivationSettings, TargetModelSettings, MethodConfig):
    """Settings of `din`."""

    hidden_units: tuple[int, ...] = Field((200, 80), min_length=1)


class DIN(Method):
    """Deep interest network, one for all domains.

    Source: Zhou et al., KDD 2018, Eq. (3).
    Differs: layer normalisation and ReLU in the blocks for Dice; the attention has
    sigmoid layers and no Dice; no mini-batch aware L2 (`l2` of the table's optimiser,
    which takes looked-up rows only, is the like of it).
    """

    Config = DINConfig
    config: DINConfig

    def build_model(self) -> TargetModel:
        """Returns the model."""
        return TargetModel(self.schema, self.config, self.config.activation_layer)
