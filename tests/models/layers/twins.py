"""Float64 NumPy twins and small helpers that the tests of layers share."""

import inspect
import json

import numpy as np

EPSILON = 1e-5


def randomise(layer, seed=0):
    """Gives every trainable weight values of its own, biases and scales too."""
    rng = np.random.default_rng(seed)
    for variable in layer.trainable_variables:
        variable.assign(rng.normal(size=variable.shape))


def array(variable):
    return np.asarray(variable, np.float64)


def layer_norm(x, gamma, beta):
    x = x - x.mean(-1, keepdims=True)
    x = x / np.sqrt((x * x).mean(-1, keepdims=True) + EPSILON)
    return x * gamma + beta


def relu(x):
    return np.maximum(x, 0.0)


def block(x, kernel, bias, gamma=None, beta=None, activation=relu):
    """`act(norm(x W + b))`; normalised where gamma is given."""
    x = array(x) @ array(kernel) + array(bias)
    if gamma is not None:
        x = layer_norm(x, array(gamma), array(beta))
    return activation(x)


def softmax(x):
    x = np.exp(x - x.max(-1, keepdims=True))
    return x / x.sum(-1, keepdims=True)


def shapes(layer):
    """Weight shapes by name, the layer's own prefix left out."""
    return {
        v.name.split("/")[-1].removesuffix(":0"): tuple(v.shape) for v in layer.weights
    }


def check_config(layer):
    """The config goes through JSON, makes an equal layer, and is all arguments."""
    config = layer.get_config()
    again = type(layer).from_config(json.loads(json.dumps(config)))
    assert json.dumps(again.get_config()) == json.dumps(config)
    parameters = inspect.signature(type(layer).__init__).parameters.values()
    names = [p.name for p in parameters if p.kind != p.VAR_KEYWORD]
    for name in names[1:]:
        assert name in config, name
        assert getattr(again, name) == getattr(layer, name), name
    return again
