"""What the tests of SSCTL share: a small method, and the parts of its loss."""

import tensorflow as tf

from features.schema import FeatureInfo, ModelSchema
from models.method import MAIN
from tests.models.methods import data

# Lambda in full from the first step; optimisers without slots, which take time.
SGD = {"kind": "sgd", "learning_rate": 0.1}
NOW = {"pseudo_ramp_steps": (0, 0), "optimizer": {"embedding": SGD, "dense": SGD}}
FIRST = "d0"  # the dominant domain


def context_schema(domains=3, tasks=2):
    schema = data.make_schema(domains, tasks)
    hour = FeatureInfo("hour", "context", "id", "hour", 24, 4)
    load = FeatureInfo("load", "context", "number")
    return ModelSchema((*schema.features, hour, load), schema.domains, schema.tasks)


def ssctl(schema=None, **settings):
    return data.make_method("ssctl", schema or context_schema(), **(NOW | settings))


def with_domain(batch, domain):
    features = dict(batch.features, domain=tf.constant(domain, tf.int32))
    return batch._replace(features=features)


def seen_and_classes(method, batch):
    seen = method.model.embed({**batch.features, "valid": batch.valid})
    return seen, method.model.class_logits(seen)


def copies_of(method, batch):
    """Pseudo domains and weights as the next loss will take them."""
    seen, z = seen_and_classes(method, batch)
    return method.labelling.copies(seen.rows.leave(z), batch)[0]


def part_gradients(method, batch, part, variables):
    """Gradient of one part of the loss, None where there is no path at all."""
    with tf.GradientTape() as tape:
        _, metrics = method.loss({MAIN: batch})
    found = tape.gradient(metrics[part], variables)
    return [None if g is None else tf.convert_to_tensor(g).numpy() for g in found]
