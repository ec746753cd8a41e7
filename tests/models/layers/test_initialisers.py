import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from models.layers.initialisers import Stacked


def test_every_kernel_of_a_stack_has_the_spread_of_a_single_one():
    tf.random.set_seed(0)
    kernels = Stacked("glorot_uniform")([3, 4, 64, 32]).numpy()
    limit = np.sqrt(6 / (64 + 32))  # Glorot's, of one kernel
    assert kernels.shape == (3, 4, 64, 32)
    for kernel in kernels.reshape(12, 64, 32):
        assert 0.98 * limit < np.abs(kernel).max() <= limit
        assert kernel.std() == pytest.approx(limit / np.sqrt(3), rel=0.05)


def test_kernels_of_a_stack_differ():
    kernels = Stacked("he_normal")([5, 3, 2]).numpy()
    assert len({k.tobytes() for k in kernels}) == 5


def test_constant_base_fills_the_stack():
    np.testing.assert_array_equal(Stacked("ones")([2, 3, 4]), np.ones([2, 3, 4]))


def test_base_with_a_seed_is_refused():
    with pytest.raises(ValueError, match="Stacked.base must not carry a seed; got 3"):
        Stacked(keras.initializers.GlorotUniform(seed=3))


def test_config_round_trip_draws_from_the_same_distribution():
    first = Stacked(keras.initializers.RandomUniform(2.0, 3.0))
    again = Stacked.from_config(first.get_config())
    values = again([4, 5, 6]).numpy()
    assert values.min() >= 2.0
    assert values.max() <= 3.0
    assert again.get_config() == first.get_config()
