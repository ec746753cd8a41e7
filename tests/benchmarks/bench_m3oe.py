"""M3oE's training rows/s against the published forward cost, in one run.

The other side is a literal transcription in plain TensorFlow of what the authors'
code computes: every row through the slots of f_DR of all domains and through the
towers of all (domain, task) pairs, then selection; a loop over experts; dense Adam
over all tables.  Shapes are MovieLens-1M's: 7 id fields of width 16 and a number, 3
domains, 2 tasks.  Our step is taken in passes of `--rows_per_pass` (4,096 here, each
small enough for the cache), and in one pass beside it.

With `--authors_dir` (a checkout of the authors' repository) and `--authors_python` (a
Python with torch) their own code is timed before and after, with one thread and with
one a processor; the better of each pair counts.
"""

import argparse
import os
import pathlib
import subprocess
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))  # run as a script too

from models.training import allocator  # isort: skip
from tests.benchmarks import timing  # isort: skip

import tensorflow as tf  # isort: skip
import tf_keras as keras  # isort: skip

NUM_IDS = [6042, 3708, 4, 23, 3441, 20]  # user movie gender occupation zip genre
DOMAINS, TASKS = 3, 2
AUTHORS_STEPS = 8  # an epoch of theirs: fewer count its start against them
SHARES = [0.2107, 0.3955, 0.3938]
STAR, HIDDEN, EXPERT, TOWER, SHARED = 512, 256, 64, 64, 4
OPTIMIZER = {
    "embedding": {"kind": "adam", "learning_rate": 0.01},
    "dense": {"learning_rate": 0.01, "l2": 1e-5},
}


class Norm(keras.layers.Layer):
    """Linear, layer normalisation by its formula, ReLU."""

    def __init__(self, units):
        super().__init__()
        self.linear = keras.layers.Dense(units)
        self.units = units

    def build(self, shape):
        self.gamma = self.add_weight("gamma", [self.units], initializer="ones")
        self.beta = self.add_weight("beta", [self.units], initializer="zeros")

    def call(self, x):
        x = self.linear(x)
        mean, variance = tf.nn.moments(x, [-1], keepdims=True)
        x = (x - mean) * tf.math.rsqrt(variance + 1e-5)
        return tf.nn.relu(x * self.gamma + self.beta)


class Published(keras.Model):
    """The published model, every head of every row."""

    def __init__(self):
        super().__init__()
        dense = keras.layers.Dense
        self.tables = [keras.layers.Embedding(n, 16) for n in [*NUM_IDS, DOMAINS]]
        width = 16 * len(self.tables) + 1
        shapes = {"w": [width, STAR], "b": [STAR]}
        for name, shape in shapes.items():
            setattr(self, name, self.add_weight(name, shape))
            own = [self.add_weight(f"{name}_{d}", shape) for d in range(DOMAINS)]
            setattr(self, f"{name}_own", own)
        self.combine, self.adapt = Norm(HIDDEN), Norm(HIDDEN)
        self.experts = [Norm(EXPERT) for _ in range(SHARED + DOMAINS + TASKS)]
        heads = range(DOMAINS * TASKS)
        self.gates = [dense(SHARED, "softmax") for _ in heads]
        self.towers = [keras.Sequential([Norm(TOWER), dense(1)]) for _ in heads]
        self.raw = self.add_weight("fusion", [4], initializer="ones")

    def call(self, features):
        domain = features["domain"]
        ids = [features[f"id{i}"] for i in range(len(NUM_IDS))] + [domain]
        parts = [table(i) for table, i in zip(self.tables, ids, strict=True)]
        x = tf.concat([*parts, features["x0"][:, None]], axis=1)
        star = tf.zeros([tf.shape(x)[0], STAR])
        for d in range(DOMAINS):
            out = tf.matmul(x, self.w * self.w_own[d]) + self.b + self.b_own[d]
            star = tf.where((domain == d)[:, None], out, star)
        h = self.combine(star) + self.adapt(x)
        out = [expert(h) for expert in self.experts]
        shared = tf.stack(out[:SHARED], axis=1)
        alpha_d, alpha_t, beta_d, beta_t = tf.unstack(tf.sigmoid(self.raw))
        logits = []
        for d in range(DOMAINS):
            own = mixed(out[SHARED : SHARED + DOMAINS], d, beta_d)
            for t in range(TASKS):
                gate = self.gates[d * TASKS + t](tf.stop_gradient(h))
                mix = tf.matmul(gate[:, None], shared)[:, 0]
                task = mixed(out[SHARED + DOMAINS :], t, beta_t)
                fused = mix + alpha_d * own + alpha_t * task
                logits.append(self.towers[d * TASKS + t](fused))
        return tf.reshape(tf.concat(logits, axis=1), [-1, DOMAINS, TASKS])


def mixed(experts, index, beta):
    others = [e for i, e in enumerate(experts) if i != index]
    return beta * experts[index] + (1 - beta) / len(others) * tf.add_n(others)


class PublishedTraining:
    """Dense Adam with L2 on everything; the sum of cell means."""

    def __init__(self, batch):
        self.model, self.batch = Published(), batch
        self.model(batch.features)
        self.optimizer = keras.optimizers.Adam(0.01, jit_compile=False)
        self.optimizer.build(self.model.trainable_variables)
        self.step = tf.function(self._step, autograph=False)

    def run(self, steps):
        for _ in range(steps):
            loss = self.step(self.batch.features, self.batch.labels)
        if not tf.math.is_finite(loss):
            raise RuntimeError("the published form diverged")

    def _step(self, features, labels):
        with tf.GradientTape() as tape:
            logits = self.model(features)
            loss = 0.0
            for d in range(DOMAINS):
                own = features["domain"] == d
                for t in range(TASKS):
                    bce = tf.nn.sigmoid_cross_entropy_with_logits(
                        labels=labels[:, t][own], logits=logits[:, d, t][own]
                    )
                    loss += tf.reduce_mean(bce)
        variables = self.model.trainable_variables
        gradients = tape.gradient(loss, variables)
        dense = [
            tf.convert_to_tensor(g) + 1e-5 * v
            for g, v in zip(gradients, variables, strict=True)
        ]
        self.optimizer.apply_gradients(zip(dense, variables, strict=True))
        return loss


def authors_rows_per_sec(args):
    """Returns rows/s of the authors' code at its better number of threads."""
    if not args.authors_dir:
        return None
    script = pathlib.Path(__file__).with_name("authors_m3oe.py")
    rates = []
    for threads in {1, os.cpu_count()}:
        command = [args.authors_python, str(script), str(args.authors_dir)]
        done = subprocess.run(
            [*command, str(args.batch), str(AUTHORS_STEPS), str(threads)],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            check=True,
        )
        rates.append(float(done.stdout.splitlines()[-1]))
    return max(rates)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=40_960)
    parser.add_argument("--rows_per_pass", type=int, default=4096)
    parser.add_argument("--steps", type=int, default=1, help="in one timed call")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--authors_dir", type=pathlib.Path)
    parser.add_argument("--authors_python", default="python3")
    args = parser.parse_args(argv)
    authors = [authors_rows_per_sec(args)]
    schema = timing.make_schema(NUM_IDS, DOMAINS, TASKS, numbers=1)
    batch = timing.make_batch(schema, args.batch, shares=SHARES)
    settings = {"optimizer": OPTIMIZER, "num_shared_experts": SHARED}
    allocator.keep_freed_memory()  # for both sides, as models.train does
    runs = {"plain": PublishedTraining(batch)}
    for name, size in (("m3oe", args.rows_per_pass), ("one_pass", 0)):
        method = timing.make_method("m3oe", schema, **settings, rows_per_pass=size)
        runs[name] = timing.Training(method, batch)
    for run in runs.values():
        run.run(1)
    peak, clock = timing.MatmulPeak(), timing.Clock()
    for _ in range(args.rounds):
        peak.time(clock)
        for name, run in runs.items():
            clock.time(name, lambda run=run: run.run(args.steps))
    rows = args.batch * args.steps
    ours = rows / clock.secs("m3oe")
    flops = runs["m3oe"].flops()
    authors.append(authors_rows_per_sec(args))
    theirs = {}
    if args.authors_dir:
        theirs = {
            "authors_rows_per_sec": [round(value) for value in authors],
            "ratio_to_authors": timing.significant(ours / max(authors)),
        }
    timing.print_line(
        "m3oe",
        batch=args.batch,
        rows_per_pass=args.rows_per_pass,
        rows_per_sec=round(ours),
        rows_per_cpu_sec=round(rows / clock.cpu_secs("m3oe")),
        one_pass_rows_per_sec=round(rows / clock.secs("one_pass")),
        plain_rows_per_sec=round(rows / clock.secs("plain")),
        ratio_to_plain=timing.significant(clock.ratio("m3oe", "plain")),
        cpu_ratio_to_plain=timing.significant(clock.ratio("m3oe", "plain", "cpu")),
        **theirs,
        matmul_peak_gflops=peak.gflops(clock),
        matmul_kflop_per_row=round(flops / args.batch / 1e3),
        share_of_matmul_peak=peak.share(clock, "m3oe", flops * args.steps),
    )


if __name__ == "__main__":
    main()
