"""Rows a step of streams that last as long as an epoch."""

import pytest
import tensorflow as tf

from models.training import streams


@pytest.mark.parametrize(
    ("rows", "steps", "expected"),
    [(90, 4, 23), (92, 4, 23), (93, 4, 24), (3, 4, 1)],  # on two devices: even
)
def test_fewest_rows_a_step_that_are_all_in_an_epoch(
    rows, steps, expected, two_replicas
):
    assert streams._rows_to_last(rows, steps) == expected
    with two_replicas.scope():
        assert tf.distribute.get_strategy().num_replicas_in_sync == 2
        assert streams._rows_to_last(rows, steps) == expected + expected % 2
