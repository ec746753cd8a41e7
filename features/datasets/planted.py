"""The specs of the planted logs: `python -m features.synthetic --preset <name>`."""

from features.datasets import synthetic
from features.spec import DatasetSpec
from features.synthetic_config import SyntheticConfig
from features.synthetic_presets import preset

# Methods that learn day by day read one day's folder at a time.
_BY_DAY = ("planted_ecat",)


def spec_of(config: SyntheticConfig) -> DatasetSpec:
    """Returns the spec of a log that is generated with these settings."""
    return synthetic.spec_for(
        config.domains,
        days=config.days,
        name=config.name,
        partition_by_day=config.name in _BY_DAY,
    )


def spec_ssctl() -> DatasetSpec:
    """Returns the spec of `planted_ssctl`."""
    return spec_of(preset("planted_ssctl"))


def spec_aread() -> DatasetSpec:
    """Returns the spec of `planted_aread`."""
    return spec_of(preset("planted_aread"))


def spec_ecat() -> DatasetSpec:
    """Returns the spec of `planted_ecat`."""
    return spec_of(preset("planted_ecat"))


def spec_m3oe() -> DatasetSpec:
    """Returns the spec of `planted_m3oe`."""
    return spec_of(preset("planted_m3oe"))


def spec_cctl() -> DatasetSpec:
    """Returns the spec of `planted_cctl`."""
    return spec_of(preset("planted_cctl"))
