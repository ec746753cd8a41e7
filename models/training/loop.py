"""The training loop: many steps in one call of one traced function."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from models.method import MAIN, Batches, Method


@dataclasses.dataclass(frozen=True)
class CallResult:
    """What one call did.

    Attributes:
      steps: Steps done; fewer than asked for only when `is_finite` is false.
      metrics: Scalars of the method: summed over replicas, mean over the steps.
      domain_rows: int64 [D], rows (padding left out) by domain.
      is_finite: False when the last step's loss was NaN or infinite.
    """

    steps: int
    metrics: Mapping[str, float]
    domain_rows: np.ndarray
    is_finite: bool


class Loop:
    """Runs training steps; `trace_count` says how often the step was traced."""

    def __init__(
        self, method: Method, strategy: tf.distribute.Strategy, *, jit_compile: bool
    ):
        self.method = method
        self.strategy = strategy
        self.trace_count = 0
        self._names: list[str] = []
        # Reading files cannot be compiled by XLA, so only the step is.
        self._step = (
            tf.function(self._replica_step, jit_compile=True, autograph=False)
            if jit_compile
            else self._replica_step
        )
        # Steps are pure TensorFlow: rewriting their Python would only cost time.
        self._run = tf.function(self._many_steps, autograph=False)

    def run(self, iterators: Mapping[str, Any], steps: int) -> CallResult:
        """Does at most `steps` steps; stops after the first non-finite loss."""
        done, total, rows, is_finite = self._run(
            dict(iterators), tf.constant(steps, tf.int64)
        )
        mean = total.numpy() / max(1, int(done))
        return CallResult(
            int(done),
            dict(zip(self._names, map(float, mean), strict=True)),
            rows.numpy(),
            bool(is_finite),
        )

    def _many_steps(self, iterators: Mapping[str, Any], steps: tf.Tensor) -> tuple:
        def body(
            done: tf.Tensor, total: tf.Tensor, rows: tf.Tensor, _: tf.Tensor
        ) -> tuple[tf.Tensor, ...]:
            batches = {name: next(it) for name, it in iterators.items()}
            per_replica = self.strategy.run(self._step, (batches,))
            values, counts = (
                self.strategy.reduce("sum", part, axis=None) for part in per_replica
            )
            # A method without a scalar named loss is judged by all its scalars.
            judged = (
                values[self._names.index("loss")] if "loss" in self._names else values
            )
            return (
                done + 1,
                total + tf.cast(values, total.dtype),
                rows + tf.cast(counts, tf.int64),
                tf.reduce_all(tf.math.is_finite(judged)),
            )

        num_domains = self.method.schema.num_domains
        return tf.while_loop(
            lambda done, _total, _rows, is_finite: (done < steps) & is_finite,
            body,
            (
                tf.constant(0, tf.int64),
                # The number of scalars is known once the step is traced: [1]
                # broadcasts to it, so that one trace is enough.
                # float64: the same sums whatever the number of steps a call.
                tf.zeros([1], tf.float64),
                tf.zeros([num_domains], tf.int64),
                tf.constant(True),
            ),
            shape_invariants=(
                tf.TensorShape([]),
                tf.TensorShape([None]),
                tf.TensorShape([num_domains]),
                tf.TensorShape([]),
            ),
        )

    def _replica_step(self, batches: Batches) -> tuple[tf.Tensor, tf.Tensor]:
        self.trace_count += 1
        metrics = self.method.train_step(batches)
        self._names = sorted(metrics)
        batch = batches[MAIN if MAIN in batches else min(batches)]
        counts = tf.math.unsorted_segment_sum(
            tf.cast(batch.valid, tf.int32), batch.domain, self.method.schema.num_domains
        )
        values = [tf.cast(metrics[name], tf.float32) for name in self._names]
        return tf.stack(values), counts
