"""SSCTL on a dominant domain, half of whose rows secretly are of a small domain."""

import models  # noqa: F401 - chooses Keras 2, so it comes first

import numpy as np  # isort: skip
import tensorflow as tf  # isort: skip

from models.layers.pseudo_domains import pseudo_labels  # isort: skip
from models.method import MAIN  # isort: skip
from tests.models.methods import data  # isort: skip
from tests.models.methods.ssctl_data import FIRST, seen_and_classes  # isort: skip

NUM_DOMAINS, WIDTH, ROWS, STEPS = 5, 8, 20_000, 200
SMALL, SECRET = (
    np.arange(1, NUM_DOMAINS),
    3,
)  # SECRET is k, the small domain hidden in 0
HIDDEN, MIXED, TYPICAL = "hidden", "mixed", "typical"


def planted_rows(rng):
    """A batch of 80 % dominant rows, and what each row is.

    A small domain's rows lie around a centre of its own and click by its own rule; so
    do hidden rows, by those of SECRET.  Mixed rows lie between two small domains' and
    click by a rule that no other rows have.
    """
    kind = rng.choice([HIDDEN, MIXED, TYPICAL], ROWS, p=[0.4, 0.4, 0.2])
    like = np.stack([rng.permutation(SMALL)[:2] for _ in range(ROWS)])
    like[kind == TYPICAL, 1] = like[kind == TYPICAL, 0]
    like[kind == HIDDEN] = SECRET
    rule = np.where(kind == MIXED, 0, like[:, 0])
    batch = data.linear_batch(rng, rule, rng.normal(size=(NUM_DOMAINS, WIDTH)))
    centres = 4.0 * np.eye(NUM_DOMAINS, WIDTH)
    shift = centres[like].mean(axis=1).astype("f")
    # As if a mixed row were the mean of two rows, one of each domain.
    spread = np.where(kind == MIXED, 0.5**0.5, 1.0).astype("f")
    features = {
        f"x{i}": spread * batch.features[f"x{i}"] + shift[:, i] for i in range(WIDTH)
    }
    domain = np.where(kind == TYPICAL, like[:, 0], 0)
    features["domain"] = tf.constant(domain, tf.int32)
    return batch._replace(features=features), kind


def train(method, rows):
    draws = tf.random.Generator.from_seed(1)

    @tf.function(autograph=False)
    def steps():
        def body(step):
            index = draws.uniform([256], 0, ROWS, tf.int32)
            method.train_step({MAIN: data.take(rows, index)})
            return (step + 1,)

        tf.while_loop(lambda step: step < STEPS, body, [tf.constant(0)])

    steps()


def test_pseudo_weights_are_higher_on_rows_that_secretly_are_of_a_small_domain():
    rows, kind = planted_rows(np.random.default_rng(1))
    schema = data.number_schema(WIDTH, [f"d{i}" for i in range(NUM_DOMAINS)])
    method = data.make_method(
        "ssctl", schema, dominant_domains=(FIRST,), pseudo_ramp_steps=(0, 0)
    )
    train(method, rows)
    # Not by `copies`, which would move the means that weights are judged by.
    seen, z = seen_and_classes(method, rows)
    labels = pseudo_labels(seen.rows.leave(z), method.labelling.classes)
    confidence = method.labelling.confidence
    weight = confidence.weights(labels.confidence, labels.label).numpy()
    is_secret = labels.domain.numpy() == SECRET
    hidden, mixed = kind == HIDDEN, kind == MIXED
    assert is_secret[hidden].mean() > 0.9
    assert weight[hidden].mean() > weight[mixed].mean() + 0.1
    right = weight * is_secret
    assert right[hidden].mean() > right[mixed].mean() + 0.5
