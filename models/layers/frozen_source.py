"""`FrozenSource`: a trained model that another one learns from."""

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence

import tensorflow as tf
import tf_keras as keras

from features.schema import FeatureInfo, ModelSchema
from models.layers.grown_tables import GrownTables
from models.layers.target_model import Representation, TargetModel

_log = logging.getLogger(__name__)


class FrozenSource:
    """Gives the representations of a `TargetModel`; nothing in it ever changes.

    Called without training mode and behind a stopped gradient.  It is no Keras or
    TensorFlow object, so that whoever holds it neither trains, nor saves, nor exports
    its weights.

    Attributes:
      model: The model.
      inputs: Width of every feature that a batch must have besides its own: none.
    """

    def __init__(self, model: keras.Model, schema: ModelSchema):
        """Checks that the model can read rows of `schema`.

        Args:
          model: A built `TargetModel`.
          schema: Of the model that learns.

        Raises:
          TypeError: For another kind of model.
          ValueError: When an input or a domain differs.
        """
        if not isinstance(model, TargetModel):
            raise TypeError(
                "the source model must be that of a run of eta or din; got "
                f"{type(model).__name__}. Train one of these on all domains."
            )
        _check_inputs(model.schema, schema)
        self.model = model
        self.inputs: dict[str, int] = {}
        self._places = places_of(schema, model.schema.domains)

    def represent(self, features: Mapping[str, tf.Tensor]) -> Representation:
        """Returns the source's representation of rows of the other model's schema."""
        domains = tf.constant(self._places, tf.int32)
        known = tf.clip_by_value(features["domain"], 0, len(self._places) - 1)
        own = {
            info.name: features[info.name] for info in model_inputs(self.model.schema)
        }
        own["domain"] = tf.gather(domains, known)
        return tf.nest.map_structure(tf.stop_gradient, self.model.represent(own))

    @property
    def version(self) -> str:
        """A hash of all weights: 16 hexadecimal digits."""
        digest = hashlib.sha256()
        for variable in self.model.variables:
            digest.update(variable.numpy().tobytes())
        return digest.hexdigest()[:16]

    def copy_to(self, target: TargetModel) -> None:
        """Starts the other model from the source's weights, its tables maybe longer.

        Raises:
          ValueError: When a shape differs otherwise.
        """
        own, others = self.model.variables, target.variables
        if len(own) != len(others):
            raise ValueError(
                "warm_start_from_source needs a source model of the same layers; got "
                f"{len(own)} variables for {len(others)}. Train it with the same "
                "sizes and domains, or turn the warm start off."
            )
        tables = GrownTables(self.model, target, owner="warm_start_from_source")
        for old, new in zip(own, others, strict=True):
            tables.copy(old, new)


class SourceVersions(tf.train.experimental.PythonState):
    """Versions of the source that a run has learnt from, kept in its checkpoints.

    A run that goes on with another source than before adds its version, and says so:
    one that is resumed, and one that begins where another ended (`init_from`).

    Attributes:
      versions: Oldest first; the last is the present one.
    """

    def __init__(self, version: str | None):
        self.present = version
        self.versions = [] if version is None else [version]
        self._restored: list[str] = []

    def serialize(self) -> str:
        """Returns JSON."""
        return json.dumps(self.versions)

    def deserialize(self, string_value: bytes) -> None:
        """Takes the versions of a checkpoint; the present one goes last."""
        self._restored = json.loads(string_value)
        changed = self._go_on(self._restored)
        if changed:
            _log.warning(changed)

    def go_on_from(self, earlier: "SourceVersions") -> str:
        """Takes those of an earlier run's checkpoint; returns what has changed.

        Not the version that lies in the earlier run's folder of the source by now: it
        has not learnt from that.
        """
        return self._go_on(earlier._restored)

    def _go_on(self, versions: list[str]) -> str:
        self.versions = list(versions)
        if self.present is None or versions[-1:] == [self.present]:
            return ""
        self.versions.append(self.present)
        if not versions:
            return ""
        return (
            f"the source model has changed: {versions[-1]} until now, {self.present} "
            "from here on"
        )


def model_inputs(schema: ModelSchema) -> list[FeatureInfo]:
    """Returns the features besides the domain."""
    return [f for f in schema.features if f.role != "domain"]


def places_of(schema: ModelSchema, domains: Sequence[str]) -> list[int]:
    """Returns where each domain of `schema` stands among the source's.

    Raises:
      ValueError: For a domain that the source does not know.
    """
    unknown = [name for name in schema.domains if name not in domains]
    if unknown:
        raise ValueError(
            f"the source model must know every domain of the run; it has not seen "
            f"{', '.join(unknown)}. Train it on all domains."
        )
    return [domains.index(name) for name in schema.domains]


def _check_inputs(source: ModelSchema, schema: ModelSchema) -> None:
    own = {f.name: f for f in model_inputs(schema)}
    for theirs in model_inputs(source):
        ours = own.get(theirs.name)
        if ours is None or (ours.kind, ours.length) != (theirs.kind, theirs.length):
            raise ValueError(
                f"the source model reads {theirs.name!r} as {theirs.kind} of length "
                f"{theirs.length}; this data set has "
                f"{f'{ours.kind} of length {ours.length}' if ours else 'none'}. Use a "
                "source trained on a data set of the same spec."
            )
        if ours.num_ids != theirs.num_ids:
            _log.warning(
                "%s: the source model's table has %d ids, this data set's %d; ids past "
                "the smaller are unknown to it, which is right only if one vocabulary "
                "continues the other",
                *(theirs.name, theirs.num_ids, ours.num_ids),
            )
