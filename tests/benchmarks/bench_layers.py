"""What the layers' shortcuts save, each against the plain form, in one run.

`norm`: Dense, layer normalisation and ReLU (`DenseBlock`) against Keras' own layers.
`bias`: biases of four stacked experts (`add_bias`, whose gradient is a product) against
TensorFlow's addition, whose gradient is a sum over rows.
`domain`: weights per domain (`DomainDense`) by each domain's rows in place (`split`,
what a CPU does), by kernels gathered block by block (`gathered`: XLA, GPU), and by all
domains on all rows (`all`).  Forward and backward; ratios are seconds of the other form
over ours; those of CPU seconds are hardly moved by other work on the machine.
"""

import argparse
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))  # run as a script too

from tests.benchmarks import timing  # isort: skip

import numpy as np  # isort: skip
import tensorflow as tf  # isort: skip
import tf_keras as keras  # isort: skip

from models.layers import domain_rows  # isort: skip
from models.layers.domain import DomainDense  # isort: skip
from models.layers.domain_rows import DomainRows  # isort: skip
from models.layers.mlp import DenseBlock  # isort: skip
from models.layers.normalise import add_bias  # isort: skip

MAX_ALL_DOMAINS = 30  # all domains on all rows needs D times the memory


def gradient_step(call, variables, x):
    """Returns a traced function: one forward and backward pass."""

    @tf.function(autograph=False)
    def step():
        with tf.GradientTape() as tape:
            tape.watch(x)
            out = call(x)
            value = tf.reduce_sum(out * out)
        found = tape.gradient(value, [x, *variables])
        return [tf.reduce_sum(tf.convert_to_tensor(g)) for g in found]

    step()
    return step


def norm_steps(rows, width, units):
    x = tf.random.stateless_normal([rows, width], [1, 2])
    ours = DenseBlock(units, norm="layer")
    plain = keras.Sequential(
        [
            keras.layers.Dense(units),
            keras.layers.LayerNormalization(epsilon=1e-5),
            keras.layers.ReLU(),
        ]
    )
    ours(x), plain(x)
    return {
        "ours": gradient_step(ours, ours.trainable_variables, x),
        "keras": gradient_step(plain, plain.trainable_variables, x),
    }


def bias_steps(rows, units, num_experts=4):
    x = tf.random.stateless_normal([num_experts, rows, units], [1, 2])
    bias = tf.Variable(tf.zeros([num_experts, 1, units]))
    return {
        "ours": gradient_step(lambda x: add_bias(x, bias), [bias], x),
        "plain": gradient_step(lambda x: x + bias, [bias], x),
    }


def domain_steps(rows, width, units, num_domains):
    shares = np.full(num_domains, 0.4 / (num_domains - 1))
    shares[0] = 0.6
    domain = np.random.default_rng(0).choice(num_domains, rows, p=shares)
    domain = tf.constant(domain, tf.int32)
    x = tf.random.stateless_normal([rows, width], [1, 2])
    layer = DomainDense(num_domains, units, norm="layer", activation="relu")
    layer.build([None, width])
    most, steps = domain_rows.MAX_SPLIT_DOMAINS, {}
    forms = ["split", "gathered"] + ["all"] * (num_domains <= MAX_ALL_DOMAINS)
    for form in forms:
        domain_rows.MAX_SPLIT_DOMAINS = 0 if form == "gathered" else most

        def call(x, form=form):
            kind = "all" if form == "all" else "blocks"
            plan = DomainRows(domain, num_domains, form=kind)
            return plan.leave(layer(plan.enter(x), plan))

        steps[form] = gradient_step(call, layer.trainable_variables, x)
    domain_rows.MAX_SPLIT_DOMAINS = most
    return steps


def compare(steps, rounds):
    clock = timing.Clock()
    for _ in range(rounds):
        for name, step in steps.items():
            clock.time(name, step)
    ours, *others = steps
    return {
        "cpu_ms": timing.significant(1e3 * clock.cpu_secs(ours)),
        "ms": timing.significant(1e3 * clock.secs(ours)),
    } | {
        f"{name}_{kind}_ratio": timing.significant(clock.ratio(ours, name, kind))
        for name in others
        for kind in ("cpu", "wall")
    }


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=4096)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--units", type=int, default=256)
    parser.add_argument("--domains", type=int, nargs="+", default=[3, 30, 100])
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args(argv)
    shape = (args.batch, args.width, args.units)
    timing.print_line(
        "layers",
        batch=args.batch,
        width=args.width,
        units=args.units,
        norm=compare(norm_steps(*shape), args.rounds),
        bias=compare(bias_steps(args.batch, args.units), args.rounds),
        domain={d: compare(domain_steps(*shape, d), args.rounds) for d in args.domains},
    )


if __name__ == "__main__":
    main()
