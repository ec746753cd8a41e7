"""Small methods for the tests of the trainer; registered by `registered`."""

import contextlib
import json
import os

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from models import registry
from models.method import MAIN, Method, MethodConfig, PeriodicEvent, Stream
from models.training import trainer
from models.training.config import RunConfig
from models.training.loop import Loop


class FakeConfig(MethodConfig):
    dropout: float = 0.0
    every_steps: int = 0
    takes_batch: bool = False
    draws: bool = False
    serves: str = ""
    two_streams: bool = False
    nan_from_step: int = 0


class FakeModel(keras.Model):
    def __init__(self, schema, dropout):
        super().__init__()
        rows = {f.name: f.num_ids for f in schema.features}
        self.users, self.items, self.domains = (
            self.add_weight(
                f"embedding_table_{name}",
                [rows[name], 4],
                initializer=keras.initializers.RandomNormal(0.0, 0.1),
            )
            for name in ("user_id", "item_id", "domain_indicator")
        )
        self.drop = keras.layers.Dropout(dropout)
        self.hidden = keras.layers.Dense(8, activation="relu")
        self.out = keras.layers.Dense(schema.num_tasks, dtype="float32")
        self.tasks = schema.tasks

    def call(self, features, training=False):
        x = tf.concat(
            [
                tf.gather(self.users, features["user_id"]),
                tf.gather(self.items, features["item_id"]),
                tf.gather(self.domains, features["domain"]),
                features["price"][:, tf.newaxis],
            ],
            axis=1,
        )
        x = self.drop(self.hidden(x), training=training)
        logits = self.out(x)
        return {task: logits[:, t] for t, task in enumerate(self.tasks)}


class Fake(Method):
    """One hidden layer; counts its events; can be told to give NaN for a row."""

    Config = FakeConfig

    def __init__(self, config, schema):
        self.event_count = tf.Variable(0, dtype=tf.int64, trainable=False)
        self.event_sum = tf.Variable(0.0, trainable=False)
        self.seen = []
        self.drawn = []
        super().__init__(config, schema)

    def build_model(self):
        return FakeModel(self.schema, self.config.dropout)

    def streams(self):
        streams = {MAIN: Stream()}
        if self.config.two_streams:
            streams["other"] = Stream(domains=("d1",), batch_share=0.5)
        if self.config.draws:
            streams["asked"] = Stream(domains=("d2",), event_only=True)
        return streams

    def serving_domains(self):
        return (self.config.serves,) if self.config.serves else self.schema.domains

    def periodic_events(self):
        if not self.config.every_steps:
            return []
        config = self.config
        run = self._with_batch if config.takes_batch else self._event
        run = self._with_draws if config.draws else run
        return [
            PeriodicEvent(
                "count",
                config.every_steps,
                run,
                takes_batch=config.takes_batch,
                draws=config.draws,
            )
        ]

    def extra_state(self):
        return {"event_count": self.event_count, "event_sum": self.event_sum}

    def scalars(self):
        return {"event_count": float(self.event_count.numpy())}

    def stacked_logits(self, batch, *, training):
        """Gives NaN for task1 in domain d1 from a step on."""
        logits = super().stacked_logits(batch, training=training)
        if not self.config.nan_from_step:
            return logits
        bad = self.optimizers["dense"].iterations + 1 >= self.config.nan_from_step
        in_d1 = tf.cast(batch.domain == 1, tf.float32)[:, tf.newaxis]
        poison = tf.where(bad & (in_d1 > 0), float("nan"), 0.0)
        return logits + tf.concat([tf.zeros_like(poison), poison], axis=1)

    def _event(self):
        self.event_count.assign_add(1)
        self.seen.append(int(self.optimizers["dense"].iterations.numpy()))
        return {"count": float(self.event_count.numpy())}

    def _with_batch(self, batches):
        self.event_sum.assign_add(tf.reduce_sum(batches[MAIN].features["price"]))
        self.model.out.bias.assign_add(0.01 * tf.ones_like(self.model.out.bias))
        return self._event()

    def _with_draws(self, draw):
        """Three batches of the stream that steps never see."""
        for _ in range(3):
            batch = draw("asked")
            if batch is None:
                continue
            own = tf.boolean_mask(batch.features["price"], batch.valid)
            self.event_sum.assign_add(tf.reduce_sum(own))
            self.drawn += batch.domain.numpy()[batch.valid.numpy()].tolist()
        return self._event()


@contextlib.contextmanager
def registered():
    """Knows the method `fake` inside: other tests must not meet it."""
    registry.METHODS["fake"] = f"{__name__}:Fake"
    try:
        yield
    finally:
        del registry.METHODS["fake"]


def config(data_dir, **changes):
    values = {
        "method": "fake",
        "data_dir": str(data_dir),
        "batch_size": 64,
        "max_epochs": 3,
        "steps_per_call": 5,
        "method_config": {
            "optimizer": {
                "dense": {"learning_rate": 0.01},
                "embedding": {"kind": "lazy_adam", "learning_rate": 0.02},
            }
        },
    }
    method_config = {**values["method_config"], **changes.pop("method_config", {})}
    return RunConfig.parse({**values, **changes, "method_config": method_config})


def weights(workdir, step=None):
    """Numbers in a run's last checkpoint, or in that of a step, by name."""
    values = _values(workdir, step).items()
    return {k: v for k, v in values if isinstance(v, np.ndarray)}


def state(workdir):
    """The RunState in a run's last checkpoint, timings left out."""
    (text,) = [v for k, v in _values(workdir).items() if k.startswith("state/")]
    timed = ("secs", "timed_secs", "timed_rows")
    return {k: v for k, v in json.loads(text).items() if k not in timed}


def assert_resumes_exactly(config, folder, monkeypatch, *, step):
    """Trains `folder`/whole, and /stopped, which dies after a step and goes on.

    Returns:
      Results of both, which ended with the same numbers and the same state.
    """
    whole = trainer.train(config, folder / "whole")
    plain = Loop.run

    def dies(self, iterators, steps):
        if int(self.method.optimizers["dense"].iterations) >= step:
            raise KeyboardInterrupt
        return plain(self, iterators, steps)

    monkeypatch.setattr(Loop, "run", dies)
    with pytest.raises(KeyboardInterrupt):
        trainer.train(config, folder / "stopped")
    monkeypatch.setattr(Loop, "run", plain)
    resumed = trainer.train(config, folder / "stopped")
    one, two = (weights(folder / name) for name in ("whole", "stopped"))
    assert one.keys() == two.keys()
    for name, value in one.items():
        np.testing.assert_array_equal(value, two[name], err_msg=name)
    assert state(folder / "whole") == state(folder / "stopped")
    return whole, resumed


def _values(workdir, step=None):
    name = "checkpoints" if step is None else f"checkpoints/ckpt-{step}"
    reader = tf.train.load_checkpoint(os.path.join(workdir, name))
    names = reader.get_variable_to_shape_map()
    skipped = ("save_counter", "_CHECKPOINTABLE_OBJECT_GRAPH")
    values = {
        name: reader.get_tensor(name) for name in names if not name.startswith(skipped)
    }
    return {
        k: np.asarray(v) if np.ndim(v) or not isinstance(v, bytes) else v
        for k, v in values.items()
    }
