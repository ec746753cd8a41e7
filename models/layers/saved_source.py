"""`SavedSource`: an exported model that another one learns from."""

import hashlib
import json
import pathlib
from collections.abc import Mapping

import tensorflow as tf

from features.schema import FeatureInfo, ModelSchema
from models.layers.frozen_source import model_inputs, places_of
from models.layers.target_model import Representation, TargetModel

SIGNATURE = "represent"  # of an export of a `TargetModel`
METADATA_FILE = "assets.extra/isthmus.json"  # of any export of ours


class SavedSource:
    """Stands for a `FrozenSource` of which there is an export only.

    It needs nothing of the run that made it, and gives no weights for a warm start.

    Attributes:
      inputs: Width of every feature that a batch must have besides its own: none.
      version: A hash of its weights' files: 16 hexadecimal digits.
    """

    def __init__(self, folder: str | pathlib.Path, schema: ModelSchema):
        """Loads a version folder and checks that it can read rows of `schema`.

        Raises:
          TypeError: For an export of another kind of model.
          ValueError: When an input or a domain differs.
        """
        folder = pathlib.Path(folder)
        loaded = tf.saved_model.load(str(folder))
        if SIGNATURE not in loaded.signatures:
            raise TypeError(
                f"the source model must be an export of eta or din, with a signature "
                f"{SIGNATURE!r}; {folder} has {', '.join(sorted(loaded.signatures))}. "
                "Export such a run (again)."
            )
        self.inputs: dict[str, int] = {}
        self.version = self.version_of(folder)
        self._loaded = loaded  # its variables live as long as it does
        self._function = loaded.signatures[SIGNATURE]
        _, self._specs = self._function.structured_input_signature
        _check_inputs(self._specs, schema)
        metadata = json.loads((folder / METADATA_FILE).read_text("utf-8"))
        self._places = places_of(schema, metadata["domains"])

    @staticmethod
    def version_of(folder: pathlib.Path) -> str:
        """Returns the version of an export, without loading it."""
        digest = hashlib.sha256()
        for path in sorted((folder / "variables").glob("variables.data-*")):
            digest.update(path.read_bytes())
        return digest.hexdigest()[:16]

    def represent(self, features: Mapping[str, tf.Tensor]) -> Representation:
        """Returns the source's representation of rows of the other model's schema."""
        known = tf.clip_by_value(features["domain"], 0, len(self._places) - 1)
        own = {name: features[name] for name in self._specs}
        own["domain"] = tf.gather(tf.constant(self._places, tf.int32), known)
        parts = tf.nest.map_structure(tf.stop_gradient, self._function(**own))
        return Representation(
            parts["fields"], parts["sequence"], parts["has_items"], {}
        )

    def copy_to(self, target: TargetModel) -> None:
        """Refuses: an export does not say which layer a weight is of."""
        raise ValueError(
            f"warm_start_from_source of {type(target).__name__} needs the run of the "
            "source model; got its export. Name the run's workdir."
        )


def example_specs(schema: ModelSchema) -> dict[str, tf.TensorSpec]:
    """Returns what the signature of a model of this schema takes: encoded rows."""
    specs = {"domain": tf.TensorSpec([None], tf.int32, "domain")}
    return specs | {info.name: _spec(info) for info in model_inputs(schema)}


def _spec(info: FeatureInfo) -> tf.TensorSpec:
    if info.kind == "number":
        return tf.TensorSpec([None], tf.float32, info.name)
    shape = [None] if info.kind == "id" else [None, info.length]
    return tf.TensorSpec(shape, tf.int32, info.name)


def _check_inputs(specs: Mapping[str, tf.TensorSpec], schema: ModelSchema) -> None:
    own = example_specs(schema)
    for name, theirs in specs.items():
        ours = own.get(name)
        if ours is None or (ours.shape.as_list(), ours.dtype) != (
            theirs.shape.as_list(),
            theirs.dtype,
        ):
            raise ValueError(
                f"the exported source model reads {name!r} as {theirs.dtype.name} "
                f"{theirs.shape}; this data set has "
                f"{f'{ours.dtype.name} {ours.shape}' if ours else 'none'}. Use a "
                "source trained on a data set of the same spec."
            )
