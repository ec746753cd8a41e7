"""The module that is saved: raw values in, probabilities out, three signatures."""

from collections.abc import Callable, Mapping

import tensorflow as tf

from features.dataset import Dataset
from models.method import Method
from serving.inputs import RawInput, raw_inputs
from serving.lookup import RawEncoder

EXAMPLES = "serving_default"
PREDICT = "predict"
CANDIDATES = "predict_candidates"
DOMAIN_OUTPUT = "domain"


class ServingModule(tf.Module):
    """A method's serving model behind raw inputs.

    Outputs of every signature: `<task>` float32 [B], the probability, per task, and
    `domain` int64 [B], the model's domain index of the row.

    Args:
      method: A restored method; only `serving_model()` is kept.
      dataset: Its data set.
      unknown_domain: See `RawEncoder`.
    """

    def __init__(
        self, method: Method, dataset: Dataset, unknown_domain: str | None = None
    ):
        super().__init__()
        self._model = method.serving_model()
        self._tasks = method.schema.tasks
        self._encoder = RawEncoder(dataset, method.schema.domains, unknown_domain)
        self.inputs = raw_inputs(dataset.info.spec)

    def signatures(self) -> dict[str, Callable]:
        """Returns concrete functions by signature name."""
        return {
            EXAMPLES: self._examples_function(),
            PREDICT: self._predict_function(),
            CANDIDATES: self._candidates_function(),
        }

    def score(self, raw: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Returns the outputs for raw inputs of one length."""
        return self._outputs(self._encoder(raw))

    def _outputs(self, features: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        logits = self._model(dict(features), training=False)
        outputs = {
            task: tf.sigmoid(tf.cast(logits[task], tf.float32)) for task in self._tasks
        }
        outputs[DOMAIN_OUTPUT] = tf.cast(features["domain"], tf.int64)
        return outputs

    def _predict_function(self) -> Callable:
        specs = {item.name: tensor_spec(item) for item in self.inputs}

        @tf.function(input_signature=[specs], autograph=False)
        def predict(raw: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
            return self.score(raw)

        return _by_name(predict, specs)

    def _examples_function(self) -> Callable:
        parse_spec = {item.name: _parse_spec(item) for item in self.inputs}
        kinds = {item.name: item.kind for item in self.inputs}

        @tf.function(
            input_signature=[tf.TensorSpec([None], tf.string, "examples")],
            autograph=False,
        )
        def serving_default(examples: tf.Tensor) -> dict[str, tf.Tensor]:
            raw = tf.io.parse_example(examples, parse_spec)
            raw = {
                name: tf.sparse.to_dense(value, "") if kinds[name] == "ids" else value
                for name, value in raw.items()
            }
            return self.score(raw)

        return serving_default

    def _candidates_function(self) -> Callable:
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

        @tf.function(input_signature=[specs], autograph=False)
        def predict_candidates(raw: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
            shared = {k: v for k, v in raw.items() if k not in per_item}
            items = {k: v for k, v in raw.items() if k in per_item}
            count = tf.shape(items[one_item[0]])[0] if one_item else tf.constant(1)
            features = {
                name: tf.repeat(value, count, axis=0)
                for name, value in self._encoder(shared).items()
            }
            features |= self._encoder(items)
            return self._outputs(features)

        return _by_name(predict_candidates, specs)


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


def _by_name(function: Callable, specs: Mapping[str, tf.TensorSpec]) -> Callable:
    """Wraps a dict-taking function so that its signature has one keyword an input."""

    @tf.function(autograph=False)
    def named(**raw: tf.Tensor) -> dict[str, tf.Tensor]:
        return function(raw)

    return named.get_concrete_function(**specs)
