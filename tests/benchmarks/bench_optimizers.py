"""Lazy row-wise Adam against Keras' Adam on one table, in one run; one JSON line.

Issue size: `python -m tests.benchmarks.bench_optimizers --rows 1400000`.
"""

import argparse
import json
import os
import platform
import time

import models  # noqa: F401 - chooses Keras 2, so it comes first

import numpy as np  # isort: skip
import tensorflow as tf  # isort: skip
import tf_keras as keras  # isort: skip

from models.optimizers.adam import Adam  # isort: skip


def step_ms(optimizer, table, ids, values, steps, repeats=3):
    """Returns the least mean time of a step over `repeats` runs, in ms."""

    @tf.function
    def run():
        for i in tf.range(steps):
            slices = tf.IndexedSlices(
                values, tf.ensure_shape(ids[i], [ids.shape[1]]), tf.shape(table)
            )
            optimizer.apply_gradients([(slices, table)])

    run()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return 1e3 * min(times) / steps


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--ids", type=int, default=1024 * 23)
    parser.add_argument("--steps", type=int, default=5)
    args = parser.parse_args(argv)
    rng = np.random.default_rng(0)
    ids = tf.constant(rng.integers(0, args.rows, (args.steps, args.ids), "i4"))
    values = tf.constant(rng.normal(size=(args.ids, args.width)).astype("f"))
    results = {}
    for name in ("lazy", "keras"):
        table = tf.Variable(tf.zeros([args.rows, args.width]))
        if name == "lazy":
            optimizer = Adam([table], learning_rate=1e-3, name="embedding")
        else:
            optimizer = keras.optimizers.Adam(1e-3, jit_compile=False)
        results[name] = step_ms(optimizer, table, ids, values, args.steps)
        del table, optimizer
    line = {
        "benchmark": "optimizers",
        **vars(args),
        "lazy_adam_step_ms": round(results["lazy"], 2),
        "keras_adam_step_ms": round(results["keras"], 2),
        "ratio": round(results["keras"] / results["lazy"], 2),
        "hardware": f"{os.cpu_count()} x {platform.machine()}",
    }
    print(json.dumps(line))


if __name__ == "__main__":
    main()
