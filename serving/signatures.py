"""The module that is saved: raw values in, probabilities out, in three signatures.

A model that others learn from has a fourth, `represent`, for their training.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import tensorflow as tf

from features.dataset import Dataset
from models.layers.saved_source import SIGNATURE, example_specs
from models.layers.target_model import TargetModel
from models.method import Method
from serving.inputs import RawInput, raw_inputs
from serving.lookup import RawEncoder

EXAMPLES = "serving_default"
PREDICT = "predict"
CANDIDATES = "predict_candidates"
DOMAIN_OUTPUT = "domain"


class VariableError(RuntimeError):
    """A serving model that reads variables the method did not allow."""


class ServingModule(tf.Module):
    """A method's serving model behind raw inputs.

    Outputs of every signature: `<task>` float32 [B], the probability, per task, and
    `domain` int64 [B], the model's domain index of the row.

    Only the method's `serving_variables()` hang on the module.  The Keras model does
    not: saving it would trace every layer a second time (half the time of an export)
    and put a Keras description into the file that no server reads.

    Args:
      method: A restored method.
      dataset: Its data set.
      unknown_domain: See `RawEncoder`.

    Attributes:
      inputs: The raw inputs of the signatures.
    """

    def __init__(
        self, method: Method, dataset: Dataset, unknown_domain: str | None = None
    ):
        super().__init__()
        self._tasks = method.schema.tasks
        self._encoder = RawEncoder(
            dataset, method.schema.domains, unknown_domain, method.serving_domains()
        )
        self._allowed = method.serving_variables()
        # A plain function, so that the model it closes over is not saved.
        model = method.export_model()
        self._forward = functools.partial(model, training=False)
        self._source = _Source(model) if isinstance(model, TargetModel) else None
        self._schema = method.schema
        self._model = tf.function(self._outputs, autograph=False, reduce_retracing=True)
        self.inputs = raw_inputs(dataset.info.spec)

    def signatures(self) -> dict[str, Any]:
        """Returns concrete functions by signature name.

        Raises:
          VariableError: When the serving model reads a variable that the method does
            not list in `serving_variables()`.
        """
        functions = {
            EXAMPLES: self._examples_function(),
            PREDICT: self._predict_function(),
            CANDIDATES: self._candidates_function(),
        }
        if self._source is not None:
            functions[SIGNATURE] = _by_name(
                self._source.represent, example_specs(self._schema)
            )
        allowed = {id(variable.handle) for variable in self._allowed}
        extra = {
            variable.name
            for function in functions.values()
            for variable in function.variables
            if id(variable.handle) not in allowed
        }
        if extra:
            raise VariableError(
                "serving_variables must list every variable that serving_model reads; "
                f"got none for {', '.join(sorted(extra))}. Add what serves to the "
                "method's serving_variables(), or keep serving_model from reading it."
            )
        return functions

    def score(self, raw: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Returns the outputs for raw inputs of one length."""
        return self._model(self._encoder(raw))

    def _outputs(self, features: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        logits = self._forward(dict(features))
        outputs = {
            task: tf.sigmoid(tf.cast(logits[task], tf.float32)) for task in self._tasks
        }
        outputs[DOMAIN_OUTPUT] = tf.cast(features["domain"], tf.int64)
        return outputs

    def _predict_function(self) -> Any:
        return _by_name(self.score, {i.name: tensor_spec(i) for i in self.inputs})

    def _examples_function(self) -> Any:
        parse_spec = {item.name: _parse_spec(item) for item in self.inputs}
        kinds = {item.name: item.kind for item in self.inputs}

        def serving_default(raw: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
            raw = tf.io.parse_example(raw["examples"], parse_spec)
            raw = {
                name: tf.sparse.to_dense(value, "") if kinds[name] == "ids" else value
                for name, value in raw.items()
            }
            return self.score(raw)

        spec = {"examples": tf.TensorSpec([None], tf.string, "examples")}
        return _by_name(serving_default, spec)

    def _candidates_function(self) -> Any:
        """User and context once ([1]), item inputs [N]; outputs [N].

        Everything that is the same for all candidates is looked up once; its ids are
        repeated, not its strings.
        """
        per_item = {item.name for item in self.inputs if item.per_item}
        specs = {
            item.name: tensor_spec(item, None if item.name in per_item else 1)
            for item in self.inputs
        }
        one_item = sorted(per_item)[:1]

        def predict_candidates(raw: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
            shared = {k: v for k, v in raw.items() if k not in per_item}
            items = {k: v for k, v in raw.items() if k in per_item}
            count = tf.shape(items[one_item[0]])[0] if one_item else tf.constant(1)
            features = {
                name: tf.repeat(value, count, axis=0)
                for name, value in self._encoder(shared).items()
            }
            features |= self._encoder(items)
            return self._model(features)

        return _by_name(predict_candidates, specs)


class _Source:
    """What `SavedSource` calls: encoded rows in, representations out.

    No TensorFlow object, so that the model it holds is not saved.
    """

    def __init__(self, model: TargetModel):
        self._model = model

    def represent(self, features: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Returns `fields`, `sequence` and `has_items`; see `Representation`."""
        parts = self._model.represent(features)._asdict()
        return {name: parts[name] for name in ("fields", "sequence", "has_items")}


def tensor_spec(item: RawInput, rows: int | None = None) -> tf.TensorSpec:
    """Returns the input's TensorSpec with `rows` rows (None: any number)."""
    if item.kind == "ids":
        return tf.TensorSpec([rows, None], tf.string, item.name)
    dtype = tf.string if item.kind == "id" else tf.float32
    return tf.TensorSpec([rows], dtype, item.name)


def _parse_spec(item: RawInput) -> tf.io.FixedLenFeature | tf.io.VarLenFeature:
    if item.kind == "ids":
        return tf.io.VarLenFeature(tf.string)
    if item.kind == "id":
        return tf.io.FixedLenFeature([], tf.string, "")
    return tf.io.FixedLenFeature([], tf.float32, float("nan"))


def _by_name(function: Callable, specs: Mapping[str, tf.TensorSpec]) -> Any:
    """Returns the concrete function with one keyword an input."""

    @tf.function(autograph=False)
    def named(**raw: tf.Tensor) -> dict[str, tf.Tensor]:
        return function(raw)

    return named.get_concrete_function(**specs)
