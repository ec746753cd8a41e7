"""Small ECATs and their batches, that the tests of ecat share."""

import models  # noqa: F401 - chooses Keras 2, so it comes first

import functools  # isort: skip

import numpy as np  # isort: skip
import tensorflow as tf  # isort: skip
import tf_keras as keras  # isort: skip

from models.ecat import terms  # isort: skip
from models.method import MAIN  # isort: skip
from models.methods.ecat import ECAT, ECATConfig  # isort: skip
from tests.models.methods import data  # isort: skip

GST = terms.GST


def sigmoid(x):
    return 1.0 / (1.0 + np.exp(-np.asarray(x, np.float64)))


def entropy(p):
    return -p * np.log2(p) - (1 - p) * np.log2(1 - p)


def cosine(a, b):
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return np.sum(a * b, axis=1) / np.maximum(norms, 1e-12)


def source_model(schema, **settings):
    """A model of eta with other weights."""
    return data.make_method("eta", schema, seed=7, **settings).model


def ecat(schema=None, source=None, **settings):
    """ECAT with distillation from a source model, unless told otherwise."""
    schema = schema or data.make_schema()
    distil = settings.setdefault("use_distillation", True)
    small = data.SMALL["ecat"] | {"optimizer": data.FAST, "embedding_stddev": 0.1}
    if distil and source is None:
        source = source_model(schema)
    keras.utils.set_random_seed(1)
    return ECAT(ECATConfig.parse(small | settings), schema, source)


@functools.cache
def both_taps():
    """One method for the tests that only look at it."""
    return ecat(taps=("fields", "sequence"))


def feed(schema, *, rows=12, seed=0, empty=()):
    """Target and source batches; rows `empty` of both have no history."""
    sources = np.arange(rows) % max(1, schema.num_domains - 1) + 1
    batches = {
        MAIN: data.make_batch(schema, rows, seed=seed, domain=[0] * rows),
        GST: data.make_batch(schema, rows, seed=seed + 1, domain=sources),
    }
    keep = tf.constant(~np.isin(np.arange(rows), empty))[:, tf.newaxis]
    return {
        name: with_features(batch, history=tf.where(keep, batch.features["history"], 0))
        for name, batch in batches.items()
    }


def with_features(batch, **changes):
    return batch._replace(features=batch.features | changes)


def forward(method, batches):
    batch, is_target = terms.join(batches)
    return method.model.served.forward(batch.features, training=True), batch, is_target


def parts_of(method):
    """Trainable variables of T, adapters and gates, entropy head, discriminator."""
    served = method.model.served
    return {
        "target": served.target.trainable_variables,
        "adapter": [v for a in served.adapters.values() for v in a.trainable_variables],
        "gate": [v for g in served.gates.values() for v in g.trainable_variables],
        "entropy": served.entropy_head.trainable_variables,
        "discriminator": method.model.discriminator.trainable_variables,
    }


def reached(tape, value, variables):
    """Which variables have a gradient that is not all zero."""
    found = tape.gradient(value, variables)
    return [g is not None and bool(np.any(tf.convert_to_tensor(g))) for g in found]


def shut_gates(method):
    """Sets g to 0 for good: sigmoid(-1e4) is 0, and so is its gradient."""
    for gate in method.model.served.gates.values():
        last = gate.network.blocks[-1]
        last.kernel.assign(tf.zeros_like(last.kernel))
        last.bias.assign([-1e4])


def set_discriminator(method, logit):
    """Makes the discriminator say this of every row."""
    last = method.model.discriminator.network.blocks[-1]
    last.kernel.assign(tf.zeros_like(last.kernel))
    last.bias.assign([logit])
