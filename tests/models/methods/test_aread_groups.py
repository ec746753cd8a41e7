"""AREAD on domains that fall into two hidden groups of opposite taste."""

import models  # noqa: F401 - chooses Keras 2, so it comes first

import numpy as np  # isort: skip
import tensorflow as tf  # isort: skip

from models.method import MAIN  # isort: skip
from tests.models.methods import data  # isort: skip

NUM_DOMAINS, WIDTH, ROWS, STEPS = 6, 8, 20_000, 150


def test_masks_overlap_more_inside_a_hidden_group_than_across():
    rng = np.random.default_rng(1)
    group = np.arange(NUM_DOMAINS) % 2
    tastes = np.where(group == 0, 1, -1)[:, None] * rng.normal(size=WIDTH)
    rows = data.linear_batch(rng, rng.integers(0, NUM_DOMAINS, ROWS), tastes)
    method = data.make_method(
        "aread",
        data.number_schema(WIDTH, [f"d{i}" for i in range(NUM_DOMAINS)]),
        num_experts=(3, 6, 12),
        expert_units=((8,), (8,), (4,)),
        num_candidates=4,
        candidate_steps=3,
    )
    draws = tf.random.Generator.from_seed(1)

    @tf.function(autograph=False)
    def train():
        def body(step):
            index = draws.uniform([256], 0, ROWS, tf.int32)
            method.train_step({MAIN: data.take(rows, index)})
            return (step + 1,)

        tf.while_loop(lambda step: step < STEPS, body, [tf.constant(0)])

    def draw(stream):
        domain = int(stream.rsplit("d", 1)[1])
        return data.linear_batch(rng, np.full(128, domain), tastes)

    train()
    method.search(draw)
    same = group[:, None] == group
    others = ~np.eye(NUM_DOMAINS, dtype=bool)
    for overlap in method.mask_overlap():
        inside, across = overlap[same & others].mean(), overlap[~same].mean()
        assert inside > across + 0.1, (inside, across)
