"""Where ECAT's e_s come from: a frozen model S, or its vectors kept by row."""

from typing import NamedTuple

import tensorflow as tf
import tf_keras as keras

from features.schema import ModelSchema
from models import method
from models.ecat.config import ECATConfig
from models.layers.cached_source import CachedSource
from models.layers.frozen_source import FrozenSource
from models.layers.saved_source import SavedSource
from models.layers.target_model import TargetModel
from tfrecords_tools.vectors import RowVectors


class Source(NamedTuple):
    """S, as far as a run needs it and it is there.

    Attributes:
      model: The model; None where it is not needed, or not there.
      cached: Its representations by row; None where not asked for, or not there.
    """

    model: FrozenSource | SavedSource | None = None
    cached: CachedSource | None = None

    @property
    def representations(self) -> FrozenSource | SavedSource | CachedSource | None:
        """What gives e_s."""
        return self.cached or self.model


def open_source(
    config: ECATConfig, schema: ModelSchema, given: keras.Model | None
) -> Source:
    """Returns S: the given model, or what the config names.

    A trained run scores and exports without S, so what is not there is None; see
    `require` for training.

    Raises:
      ValueError: When the config names none, or its vectors are of another model.
    """
    if not config.needs_source:
        return Source()
    if given is not None:
        return Source(FrozenSource(given, schema))
    if config.needs_source_model and not config.source_workdir:
        raise ValueError(
            "ecat.source_workdir must name a finished run of eta or din, the source "
            "model, or its export; got none. Train one on all domains, or set "
            "use_distillation: false."
        )
    source = Source(_open_model(config, schema), _open_cached(config))
    if config.gate_uses_source and source.model is None:
        raise missing(config)
    versions = [part.version for part in source if part is not None]
    if len(set(versions)) > 1:
        raise ValueError(
            f"ecat.source_vectors must be of the source model, version {versions[0]} "
            f"({config.source_workdir}); got version {versions[1]} "
            f"({config.source_vectors}). Write them again with models.represent."
        )
    return source


def _open_model(
    config: ECATConfig, schema: ModelSchema
) -> FrozenSource | SavedSource | None:
    # Here, since models.training opens runs of any method, this one too.
    from models.training import source

    if not config.needs_source_model or not source.exists(config.source_workdir):
        return None
    return source.open_source(config.source_workdir, schema)


def _open_cached(config: ECATConfig) -> CachedSource | None:
    there = config.source_vectors and RowVectors.exists(config.source_vectors)
    return CachedSource(config.source_vectors) if there else None


def require(config: ECATConfig, source: Source) -> None:
    """Raises ValueError unless all that training needs of S is there."""
    no_vectors = bool(config.source_vectors) and source.cached is None
    no_model = config.needs_source_model and source.model is None
    if config.needs_source and (no_vectors or no_model):
        raise missing(config)


def missing(config: ECATConfig) -> ValueError:
    """Returns the error of a run that has to train without S."""
    if config.source_vectors and not RowVectors.exists(config.source_vectors):
        return ValueError(
            "ecat.source_vectors must be a folder of models.represent; there are no "
            f"vectors in {config.source_vectors!r}. Write them, or start from its path."
        )
    return ValueError(
        "ecat.source_workdir must be the folder of a finished run, or of its export; "
        "there is none "
        f"in {config.source_workdir!r}. Bring it back, or start from its path."
    )


def check_widths(
    config: ECATConfig,
    schema: ModelSchema,
    target: TargetModel,
    source: FrozenSource | SavedSource | CachedSource,
) -> None:
    """Compares tapped layers of S and T, which a cosine is taken of."""
    example = method.example_features(schema)
    kept = {name: tf.zeros([2, width]) for name, width in source.inputs.items()}
    own, theirs = target.represent(example), source.represent(example | kept)
    for tap in config.taps:
        widths = [getattr(parts, tap).shape[1] for parts in (own, theirs)]
        if widths[0] != widths[1]:
            raise ValueError(
                f"ecat.taps: layer {tap!r} must be as wide in the source model as "
                f"in the target's; got {widths[1]} and {widths[0]}. Give both the "
                "same sizes"
                + (
                    f", or keep that layer (models.represent --layers={tap})."
                    if isinstance(source, CachedSource)
                    else "."
                )
            )
