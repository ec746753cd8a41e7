"""The training input: every stream of a method, with a position to resume from."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from features.dataset import Dataset
from models.layers.cached_source import VECTORS
from models.method import MAIN, Method, Stream
from models.training.checkpoint import RunState
from models.training.config import RunConfig
from tfrecords_tools import count, one_domain, read
from tfrecords_tools.batch import Batch
from tfrecords_tools.vectors import RowVectors


@dataclasses.dataclass(frozen=True)
class StreamPlan:
    """A stream's numbers.

    Attributes:
      stream: What the method asked for.
      dataset: Where it is read.
      domains: Names of the domains in it.
      batch_size: Rows of the global batch.
      domain_rows: Rows in one pass, by domain.
      vectors: What is added to its batches.
      is_one_domain: Whether each batch holds rows of one domain.
    """

    stream: Stream
    dataset: Dataset
    domains: tuple[str, ...]
    batch_size: int
    domain_rows: Mapping[str, int]
    vectors: RowVectors | None = None
    is_one_domain: bool = False

    @property
    def rows(self) -> int:
        """Rows in one pass."""
        return sum(self.domain_rows.values())

    @property
    def steps_per_epoch(self) -> int:
        """Batches in one pass, the last one (of each domain) filled up."""
        found = self.domain_rows.values() if self.is_one_domain else [self.rows]
        return sum(one_domain.num_batches(rows, self.batch_size) for rows in found)


def plan_streams(
    method: Method, dataset: Dataset, config: RunConfig
) -> dict[str, StreamPlan]:
    """Returns the plan of every stream of the method.

    Raises:
      ValueError: For a batch share that gives no row, a stream without rows, or
        batches of one domain for steps that join streams.
    """
    plans = {}
    streams = method.streams()
    if config.one_domain_batches:
        _check_one_stream(method, streams)
    for name, stream in streams.items():
        source = (
            Dataset.open(dataset.data_dir / stream.path) if stream.path else dataset
        )
        if source.info.fingerprint != dataset.info.fingerprint:
            raise ValueError(
                f"stream {name!r} must have the fingerprint {dataset.info.fingerprint} "
                f"of {dataset.data_dir}; got {source.info.fingerprint} "
                f"({source.data_dir}). Make it again from this data set."
            )
        domains = tuple(stream.domains) or method.schema.domains
        replicas = max(1, tf.distribute.get_strategy().num_replicas_in_sync)
        batch_size = round(config.batch_size * stream.batch_share)
        if batch_size < 1 or batch_size % replicas:
            raise ValueError(
                f"RunConfig.batch_size times the share {stream.batch_share} of stream "
                f"{name!r} must be a positive multiple of {replicas} devices; got "
                f"{batch_size}. Change batch_size."
            )
        rows = count.count_rows(
            source, split=stream.split, domains=domains, days=config.train_days
        )
        if not any(rows.values()) and stream.event_only:
            continue  # the event is told so when it draws
        if not any(rows.values()):
            raise ValueError(
                f"stream {name!r} must have rows; {source.data_dir} has none in split "
                f"{stream.split!r} for {', '.join(domains)}"
                + (f" on days {config.train_days}." if config.train_days else ".")
            )
        plans[name] = StreamPlan(
            stream,
            source,
            domains,
            batch_size,
            rows,
            _open_vectors(name, stream, source, config) if stream.vectors else None,
            config.one_domain_batches and not stream.event_only,
        )
    return plans


def _check_one_stream(method: Method, streams: Mapping[str, Stream]) -> None:
    """Raises unless a step reads one stream: of two, each is of other domains."""
    trained = sorted(n for n, stream in streams.items() if not stream.event_only)
    if len(trained) > 1:
        raise ValueError(
            f"RunConfig.one_domain_batches must be false for {type(method).__name__}: "
            f"each of its steps joins batches of {', '.join(trained)}; got true. "
            "Leave it out."
        )


def _open_vectors(
    name: str, stream: Stream, dataset: Dataset, config: RunConfig
) -> RowVectors:
    """Returns the vectors of a stream, which must have those of its first rows.

    The other rows are looked up as they come; vectors of another split or of rows made
    again should not take a run's start to be seen.
    """
    vectors = RowVectors.open(stream.vectors)
    if vectors.info.fingerprint != dataset.info.fingerprint:
        raise ValueError(
            f"stream {name!r} must have vectors of the fingerprint "
            f"{dataset.info.fingerprint} of {dataset.data_dir}; those in "
            f"{stream.vectors} are of {vectors.info.fingerprint}. Write them again "
            "(models.represent)."
        )
    first = read.read_stream(
        dataset,
        split=stream.split,
        domains=stream.domains,
        days=config.train_days,
        batch_size=256,
        keys=("row_id",),
        cache=False,
    )
    for batch in first.take(1):
        vectors.lookup(batch.keys["row_id"].numpy()[batch.valid.numpy()])
    return vectors


def main_plan(plans: dict[str, StreamPlan]) -> StreamPlan:
    """Returns the plan that an epoch is counted by: stream `main`, or the first."""
    trained = [name for name, plan in plans.items() if not plan.stream.event_only]
    return plans[MAIN if MAIN in plans else min(trained)]


class TrainStreams:
    """Iterators over all streams; what was drawn is counted in `state.drawn`.

    Each stream goes through its rows in an order fixed by (seed, stream, epoch), so a
    position is one number, and a resumed run opens its streams right there.
    """

    def __init__(
        self,
        plans: dict[str, StreamPlan],
        method: Method,
        config: RunConfig,
        strategy: tf.distribute.Strategy,
        state: RunState,
    ):
        self.plans = plans
        self._trained = {n: p for n, p in plans.items() if not p.stream.event_only}
        # Training streams first: one for events leaves their order of rows alone.
        self._order = sorted(plans, key=lambda n: (plans[n].stream.event_only, n))
        self._run_domains = method.schema.domains
        self._config = config
        self._strategy = strategy
        self._state = state
        self._open: dict[str, tuple[int, Any]] = {}  # epoch, iterator

    def remaining(self) -> int:
        """Returns how many steps can be done before some stream ends its epoch."""
        return min(
            plan.steps_per_epoch - self._drawn(name) % plan.steps_per_epoch
            for name, plan in self._trained.items()
        )

    def iterators(self) -> dict[str, Any]:
        """Returns an iterator per training stream, standing at the next batch."""
        return {name: self._iterator(name) for name in self._trained}

    def advance(self, steps: int) -> None:
        """Notes that `steps` batches were drawn from every training stream."""
        for name in self._trained:
            self._state.drawn[name] = self._drawn(name) + steps

    def draw(self) -> dict[str, Any]:
        """Returns the next batch of every training stream, for a periodic event."""
        batches = {name: next(it) for name, it in self.iterators().items()}
        self.advance(1)
        return batches

    def draw_one(self, name: str) -> Any:
        """Returns the next batch of one stream; None for one without rows."""
        if name not in self.plans:
            return None
        batch = next(self._iterator(name))
        self._state.drawn[name] = self._drawn(name) + 1
        return batch

    def reset(self) -> None:
        """Forgets open iterators: the state was set back."""
        self._open.clear()

    def _iterator(self, name: str) -> Any:
        plan = self.plans[name]
        epoch, batch = divmod(self._drawn(name), plan.steps_per_epoch)
        if name not in self._open or self._open[name][0] != epoch:
            self._open[name] = (epoch, iter(self._dataset(name, epoch, batch)))
        return self._open[name][1]

    def _drawn(self, name: str) -> int:
        return self._state.drawn.get(name, 0)

    def _dataset(self, name: str, epoch: int, skip: int) -> Any:
        plan = self.plans[name]
        own: dict[str, Any] = {}
        if plan.is_one_domain:
            own = {
                "reader": one_domain.read_one_domain,
                "domain_rows": plan.domain_rows,
            }
        stream = read_domains(
            plan.dataset,
            run_domains=self._run_domains,
            domains=plan.domains,
            split=plan.stream.split,
            tasks=self._config.tasks,
            batch_size=plan.batch_size,
            days=self._config.train_days,
            # Two streams over the same rows must not be in step with each other.
            shuffle_seed=self._config.seed + 1000003 * self._order.index(name),
            epoch=epoch,
            skip_batches=skip,
            keys=("row_id",) if plan.vectors else (),
            **own,
        )
        if plan.vectors:
            stream = join_vectors(stream, plan.vectors)
        replicas = self._strategy.num_replicas_in_sync
        if replicas == 1:
            return stream
        # Equal parts of a fixed size, so that shapes stay static on every replica.
        parts = stream.rebatch(plan.batch_size // replicas, drop_remainder=True)
        return self._strategy.distribute_datasets_from_function(lambda _: parts)


def join_vectors(stream: tf.data.Dataset, vectors: RowVectors) -> tf.data.Dataset:
    """Returns batches with the vectors of their rows, found by the key `row_id`.

    Features `vectors/<name>` float32 [B, width], 0 for padding rows.  A row without
    vectors ends the stream with the error of `RowVectors.lookup`.
    """
    widths = vectors.info.widths

    def lookup(row_ids: np.ndarray, valid: np.ndarray) -> list[np.ndarray]:
        found = vectors.lookup(row_ids[valid])
        values = [np.zeros([len(valid), w], np.float32) for w in widths.values()]
        for value, name in zip(values, widths, strict=True):
            value[valid] = found[name]
        return values

    def join(batch: Batch) -> Batch:
        keys = dict(batch.keys)
        arguments = [keys.pop("row_id"), batch.valid]
        values = tf.numpy_function(
            lookup, arguments, [tf.float32] * len(widths), stateful=False
        )
        features = dict(batch.features)
        for value, (name, width) in zip(values, widths.items(), strict=True):
            features[VECTORS + name] = tf.ensure_shape(
                value, [batch.valid.shape[0], width]
            )
        return batch._replace(features=features, keys=keys)

    return stream.map(join).prefetch(1)


def read_domains(
    dataset: Dataset,
    *,
    run_domains: Sequence[str],
    domains: Sequence[str],
    reader: Callable[..., tf.data.Dataset] = read.read_stream,
    **arguments: Any,
) -> tf.data.Dataset:
    """Returns a stream with domain indices that count within `run_domains`.

    Args:
      dataset: An opened data set.
      run_domains: Domains of the model, in its index order.
      domains: Those of them to read.
      reader: `read.read_stream` or `one_domain.read_one_domain`.
      **arguments: As in `reader`.
    """
    if tuple(run_domains) == tuple(dataset.info.fitted.domains):
        keep = () if tuple(domains) == tuple(run_domains) else domains
        return reader(dataset, domains=keep, **arguments)
    stream = reader(dataset, domains=domains, remap_domains=True, **arguments)
    if tuple(domains) == tuple(run_domains):
        return stream
    index = tf.constant([list(run_domains).index(d) for d in domains], tf.int32)

    def to_run(batch: Any) -> Any:
        features = {**batch.features, "domain": tf.gather(index, batch.domain)}
        return batch._replace(features=features)

    return stream.map(to_run)
