"""Methods with masks of their own, and draws of rows, for the tests of AREAD."""

import numpy as np

from models.aread import masks as masks_lib
from models.aread.search import SCORE_STREAM
from models.method import MAIN
from tests.models.methods import data


def aread(schema=None, **settings):
    return data.make_method("aread", schema or data.make_schema(), **settings)


def put_masks(method, *, rate=0.6, seed=0):
    """Gives every domain a random live mask; returns them as bool arrays."""
    rng = np.random.default_rng(seed)
    variables = method.model.hierarchy.masks
    full = tuple(np.ones(v.shape[1:], bool) for v in variables)
    domains = range(method.schema.num_domains)
    masks = [masks_lib.candidate(full, rate, 4, rng) for _ in domains]
    layers = [np.stack(layer) for layer in zip(*masks, strict=True)]
    for variable, values in zip(variables, layers, strict=True):
        variable.assign(values)
    return layers


def values_of(variables):
    return [v.numpy() for v in variables]


def train(method, steps=2, *, rows=40, seed=50):
    for step in range(steps):
        method.train_step(
            {MAIN: data.make_batch(method.schema, rows, seed=seed + step)}
        )


class Rows:
    """`draw`: batches of one domain, the n-th of a stream always the same.

    Those of `search/` streams differ from those of `score/` streams.
    """

    def __init__(self, schema, *, rows=24, empty=(), drawn=None):
        self.schema = schema
        self.rows = rows
        self.empty = empty
        self.drawn = dict(drawn or {})

    def __call__(self, stream):
        if stream in self.empty:
            return None
        number = self.drawn.get(stream, 0)
        self.drawn[stream] = number + 1
        domain = self.schema.domains.index(stream.split("/", 1)[1])
        seed = 1000 * domain + number + 500 * stream.startswith(SCORE_STREAM)
        return data.make_batch(
            self.schema, self.rows, seed=seed, domain=[domain] * self.rows
        )
