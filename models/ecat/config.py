"""Settings of `ecat`, and their checks against the data set."""

from typing import Annotated, Literal

import pydantic
from pydantic import Field

from features.config import lookup_error
from features.schema import ModelSchema
from models.layers.target_model import (
    HashedAttentionSettings,
    LocalActivationSettings,
    TargetModelSettings,
)
from models.method import MethodConfig
from models.optimizers.groups import GroupConfig, OptimizerConfig


class ECATConfig(
    LocalActivationSettings, HashedAttentionSettings, TargetModelSettings, MethodConfig
):
    """Settings of `ecat`.

    `architecture` says which of the two attentions T (and S) has.
    """

    optimizer: OptimizerConfig = OptimizerConfig(
        embedding=GroupConfig(kind="adagrad_decay", learning_rate=0.01),
        dense=GroupConfig(kind="adagrad_decay", learning_rate=0.01),
    )
    target_domain: str = Field("", description="the domain to serve")
    architecture: Literal["eta", "din"] = "eta"
    use_source_rows: bool = True
    gst_path: str = Field("", description="selected rows, below the data folder")
    source_domains: tuple[str, ...] = Field((), description="all others if empty")
    gst_share: Annotated[float, Field(gt=0)] | Literal["auto"] = Field(
        1.0, description="source rows a target row; auto = as many as there are"
    )
    use_da: bool = True
    w_da: Literal["one_sided", "entropy", "ratio"] = "one_sided"
    beta: float = Field(1.0, ge=0)
    discriminator_units: tuple[int, ...] = (128, 64)
    domain_specific_features: tuple[str, ...] = ()
    taps: tuple[Literal["fields", "sequence"], ...] = Field(("sequence",), min_length=1)
    adapter_units: tuple[int, ...] = Field((), description="one as wide as its layer")
    use_gate: bool = True
    gate_units: tuple[int, ...] = (64,)
    gate_uses_source: bool = Field(False, description="offline only")
    entropy_source: Literal["head", "base_pass"] = "head"
    use_distillation: bool = True
    source_workdir: str = Field(
        "", description="finished run of the source model, or its export"
    )
    source_vectors: str = Field(
        "", description="its representations by row, of models.represent, in its place"
    )
    warm_start_from_source: bool = False
    alpha: float = Field(0.1, ge=0)
    use_intensity: bool = True
    w_pow: Literal["compat", "novelty", "entropy"] = "compat"
    audit_feature: str = Field("", description="id feature to audit weights by, too")

    @pydantic.model_validator(mode="after")
    def _check(self) -> "ECATConfig":
        if self.gate_uses_source and not self.use_gate:
            raise ValueError("gate_uses_source needs use_gate")
        if self.gst_path and not self.use_source_rows:
            raise ValueError("gst_path is for use_source_rows; leave one of them out")
        if self.source_vectors and (self.gate_uses_source or not self.use_distillation):
            raise ValueError(
                "source_vectors are for use_distillation, on training rows; "
                "gate_uses_source needs the model itself"
            )
        if len(set(self.taps)) != len(self.taps):
            raise ValueError("taps must name each layer once")
        return self

    @property
    def needs_source(self) -> bool:
        """Whether training asks for a source model or its representations."""
        return (
            self.use_distillation
            or self.gate_uses_source
            or self.warm_start_from_source
        )

    @property
    def needs_source_model(self) -> bool:
        """Whether training asks for the model itself."""
        return self.needs_source and (
            not self.source_vectors or self.warm_start_from_source
        )

    @property
    def entropy(self) -> str | None:
        """Where the entropy of T's prediction comes from, if anything reads it."""
        by_intensity = (
            self.use_distillation and self.use_intensity and self.w_pow == "entropy"
        )
        return self.entropy_source if self.use_gate or by_intensity else None


def source_domains(config: ECATConfig, schema: ModelSchema) -> tuple[str, ...]:
    """Returns the domains of stream `gst`, none where no source row is used.

    Raises:
      LookupError: For a domain that is not there, or is the target.
      ValueError: For selected rows in a run of the target alone.
    """
    if config.target_domain not in schema.domains:
        raise lookup_error("ecat.target_domain", config.target_domain, schema.domains)
    others = [name for name in schema.domains if name != config.target_domain]
    for name in config.source_domains:
        if name not in others:
            raise lookup_error("ecat.source_domains", name, others)
    if config.gst_path and not others:
        raise ValueError(
            f"ecat.gst_path {config.gst_path!r} holds rows of source domains, but "
            f"{config.target_domain!r} is the run's only domain. Add them to its "
            "domains."
        )
    if not config.use_source_rows:
        return ()
    return tuple(config.source_domains or others)


def check_features(config: ECATConfig, schema: ModelSchema) -> None:
    """Refuses features and layers that the data set does not have."""
    names = [f.name for f in schema.features]
    for name in config.domain_specific_features:
        if name not in names:
            raise lookup_error("ecat.domain_specific_features", name, names)
    if "sequence" in config.taps and not any(
        f.kind == "sequence" for f in schema.features
    ):
        raise ValueError(
            "ecat.taps must name layers that the model has; the data set has no "
            "sequence feature, so there is no layer 'sequence'. Set taps: [fields]."
        )
