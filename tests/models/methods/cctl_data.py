"""Small CCTLs, their batches and their state, that the tests of cctl share."""

import models  # noqa: F401 - chooses Keras 2, so it comes first

import numpy as np  # isort: skip
import tensorflow as tf  # isort: skip

from tests.models.methods import data  # isort: skip


def cctl(schema=None, **settings):
    settings = {"ren_weight": 0.0, "window": 5} | settings
    return data.make_method("cctl", schema or data.make_schema(), **settings)


def batches(method, rows=32, seed=0):
    return data.feed(method, data.make_batch(method.schema, rows, seed=seed))


def run(method, steps, first=1, step=None):
    """Steps first..steps of a run, with the event at the end of each window."""
    (event,) = method.periodic_events()
    rewards = []
    for i in range(first, steps + 1):
        metrics = (step or method.train_step)(batches(method, seed=i))
        rewards.append(float(metrics["reward"]))
        if i % event.every_steps == 0:
            event.run()
    return rewards


def values(variables):
    return [v.numpy() for v in variables]


def assert_equal(a, b):
    for left, right in zip(a, b, strict=True):
        np.testing.assert_array_equal(left, right)


def differs(a, b):
    return any(not np.array_equal(x, y) for x, y in zip(a, b, strict=True))


def twin_state(method):
    """Weights, slots and counters of the mixed and of the pure side."""
    found = []
    for variables in method.model.twins():
        state = values(variables)
        for optimizer in method.optimizers.values():
            for variable in variables:
                if any(variable is v for v in optimizer.model_variables):
                    state += values(optimizer.slots(variable).values())
                    state.append(optimizer.iterations.numpy())
        found.append(state)
    return found


def force(monkeypatch, method, logits):
    """The selector gives these logits: one for all rows, or one each."""
    own = type(method.model.selector).call
    monkeypatch.setattr(
        method.model.selector,
        "call",
        lambda x, source: (
            0.0 * own(method.model.selector, x, source)
            + tf.constant(logits, tf.float32)
        ),
    )


def gradients_of(method, part, given, variables):
    with tf.GradientTape() as tape:
        value = getattr(method._parts(given), part)
    found = tape.gradient(value, variables)
    return [None if g is None else tf.convert_to_tensor(g).numpy() for g in found]


def mean_prob(method, given):
    return float(method._parts(given).mean_prob)


def method_state(method):
    found = values(method.model.variables)
    for _, optimizer in sorted(method.optimizers.items()):
        found.append(optimizer.iterations.numpy())
        for variable in optimizer.model_variables:
            found += values(optimizer.slots(variable).values())
    for _, part in sorted(method.extra_state().items()):
        found += values([part] if isinstance(part, tf.Variable) else part.variables)
    return found


def bce(logits, labels):
    z, y = np.asarray(logits, np.float64), np.asarray(labels)
    return np.log1p(np.exp(-np.abs(z))) + np.maximum(z, 0) - z * y
