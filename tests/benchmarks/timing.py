"""What the benchmarks of training share: clocks, peaks, counted work, one batch."""

import json
import os
import platform
import time

import models  # noqa: F401 - chooses Keras 2, so it comes first

import numpy as np  # isort: skip
import tensorflow as tf  # isort: skip
import tf_keras as keras  # isort: skip

from features.schema import FeatureInfo, ModelSchema  # isort: skip
from models import registry  # isort: skip
from models.method import MAIN  # isort: skip
from models.optimizers.groups import take_step, trained_by  # isort: skip
from models.training.loop import Loop  # isort: skip
from tfrecords_tools.batch import Batch  # isort: skip

MIB = 2**20
PEAK_SIZE = 2048  # rows and columns of the product that measures the peak


def print_line(name, **values):
    """Prints the one JSON line of a benchmark."""
    hardware = f"{os.cpu_count()} x {platform.machine()}"
    print(json.dumps({"benchmark": name, **values, "hardware": hardware}))


def significant(value, digits=3):
    return float(f"{value:.{digits}g}")


class Clock:
    """Wall and CPU seconds of several things, round by round.

    Other work on the machine slows a round of all of them; so compare within rounds
    (`ratio`), or take the best round (`secs`).  CPU seconds hardly see it.
    """

    def __init__(self):
        self.wall, self.cpu = {}, {}

    def time(self, name, run):
        wall, cpu = time.perf_counter(), time.process_time()
        run()
        self.cpu.setdefault(name, []).append(time.process_time() - cpu)
        self.wall.setdefault(name, []).append(time.perf_counter() - wall)

    def secs(self, name):
        return min(self.wall[name])

    def cpu_secs(self, name):
        return min(self.cpu[name])

    def forget(self, name):
        del self.wall[name], self.cpu[name]

    def ratio(self, name, other, kind="wall"):
        """Median over rounds of how many times longer `other` takes."""
        taken = getattr(self, kind)
        return float(np.median(np.divide(taken[other], taken[name])))


class MatmulPeak:
    """A large square float32 product of TensorFlow's own, timed in every round.

    `share` is by CPU seconds: what each core reaches while it works for us.
    """

    NAME = "matmul peak"
    FLOPS = 2 * PEAK_SIZE**3

    def __init__(self):
        x = tf.random.stateless_normal([PEAK_SIZE, PEAK_SIZE], [1, 2])
        product = tf.function(lambda a: tf.reduce_sum(tf.matmul(a, a)), autograph=False)
        self.run = lambda: product(x).numpy()
        self.run()

    def time(self, clock):
        clock.time(self.NAME, self.run)

    def gflops(self, clock):
        return round(self.FLOPS / clock.secs(self.NAME) / 1e9, 1)

    def share(self, clock, name, flops):
        """Returns FLOP per CPU second of `name` as a share of the product's."""
        peak = self.FLOPS / clock.cpu_secs(self.NAME)
        return round(flops / clock.cpu_secs(name) / peak, 2)


def matmul_flops(function, *args, unknown=0.0):
    """Returns FLOPs of the matrix products in one call of a traced function.

    Sums over the graph.  A dimension that is not known stands for the rows of one
    domain: `unknown` of them, on average.
    """

    def known(shape):
        return [unknown if size is None else size for size in shape.as_list()]

    total = 0
    for op in function.get_concrete_function(*args).graph.get_operations():
        if op.type not in ("MatMul", "BatchMatMulV2", "BatchMatMulV3"):
            continue
        first = known(op.inputs[0].shape)
        name = "transpose_a" if op.type == "MatMul" else "adj_x"
        inner = first[-2] if op.get_attr(name) else first[-1]
        total += 2 * float(np.prod(known(op.outputs[0].shape))) * inner
    return total


def dense_update(method):
    """Returns a call that lets every optimiser but the tables' step once on gradients
    of 0, and how many parameters that is."""
    groups = {k: v for k, v in method.optimizers.items() if "embedding" not in k}
    variables = trained_by(groups)
    gradients = [tf.zeros_like(v) for v in variables]
    update = tf.function(lambda: take_step(gradients, groups), autograph=False)
    update()  # traces
    return update, sum(v.shape.num_elements() for v in variables)


def reset_peak():
    """Forgets the peak of memory, where Linux allows it."""
    try:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
    except OSError:
        pass  # the peak of the whole process then


def peak_mib():
    """Returns the peak of resident memory since `reset_peak`, in MiB."""
    with open("/proc/self/status") as file:
        lines = dict(line.split(":", 1) for line in file)
    return int(lines["VmHWM"].split()[0]) // 1024


def make_schema(num_ids, num_domains, num_tasks, *, width=16, numbers=0, history=0):
    """Returns one id field per entry of `num_ids`, an indicator of the domain, numeric
    fields, and a history of the first field's ids where `history` is a length."""
    fields = [
        FeatureInfo(f"id{i}", "item", "id", f"id{i}", rows, width)
        for i, rows in enumerate(num_ids)
    ]
    fields.append(FeatureInfo("domain_id", "domain", "id", "d", num_domains, width))
    fields += [FeatureInfo(f"x{i}", "item", "number") for i in range(numbers)]
    if history:
        kind = "sequence"
        fields.append(
            FeatureInfo("history", kind, kind, "id0", num_ids[0], width, history)
        )
    return ModelSchema(
        tuple(fields),
        tuple(f"d{i}" for i in range(num_domains)),
        tuple(f"t{i}" for i in range(num_tasks)),
    )


def make_batches(method, rows):
    """Returns a batch of each training stream, by name: rows of its domains."""
    schema, batches = method.schema, {}
    for seed, (name, stream) in enumerate(method.streams().items()):
        if stream.event_only:
            continue
        shares = np.array(
            [not stream.domains or d in stream.domains for d in schema.domains], float
        )
        batches[name] = make_batch(
            schema,
            round(rows * stream.batch_share),
            shares=None if shares.all() else shares / shares.sum(),
            seed=seed,
        )
    return batches


def make_batch(schema, rows, *, shares=None, seed=0):
    """Returns random rows; domain 0 has 60 % of them, or `shares` says."""
    rng = np.random.default_rng(seed)
    count = schema.num_domains
    if shares is None:
        shares = np.full(count, 0.4 / max(count - 1, 1))
        shares[0] = 1.0 - shares[1:].sum()
    domain = rng.choice(count, rows, p=shares)
    features = {"domain": tf.constant(domain, tf.int32)}
    for info in schema.features:
        if info.kind == "number":
            features[info.name] = tf.constant(rng.random(rows), tf.float32)
        elif info.role != "domain":
            shape = (rows, info.length) if info.kind == "sequence" else rows
            ids = rng.zipf(1.3, shape) % (info.num_ids - 2) + 2
            features[info.name] = tf.constant(ids, tf.int32)
    labels = rng.integers(0, 2, (rows, schema.num_tasks))
    return Batch(
        features,
        tf.constant(labels, tf.float32),
        tf.ones(labels.shape),
        tf.ones([rows]),
        tf.ones([rows], tf.bool),
        {},
    )


def make_method(name, schema, **settings):
    keras.utils.set_random_seed(1)
    cls = registry.method_class(name)
    return cls(cls.Config.parse(settings), schema)


class Training:
    """A method in the project's own loop, fed the same batches again and again.

    Attributes:
      rows: Rows of a step, over all streams.
    """

    def __init__(self, method, batches):
        self.method = method
        self.batches = batches if isinstance(batches, dict) else {MAIN: batches}
        self.rows = sum(batch.domain.shape[0] for batch in self.batches.values())
        self.loop = Loop(method, tf.distribute.get_strategy(), jit_compile=False)
        self.streams = {
            name: iter(tf.data.Dataset.from_tensors(batch).repeat())
            for name, batch in self.batches.items()
        }

    def run(self, steps):
        result = self.loop.run(self.streams, steps)
        if not result.is_finite or result.steps != steps:
            raise RuntimeError(f"{type(self.method).__name__} diverged")

    def flops(self):
        """Returns FLOPs of the matrix products of one step."""
        step = tf.function(self.method.train_step, autograph=False)
        rows = self.method.config.rows_per_pass or self.rows
        unknown = rows / self.method.schema.num_domains
        return matmul_flops(step, self.batches, unknown=unknown)
