"""The training input: every stream of a method, with a position to resume from."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from features.config import lookup_error
from features.dataset import Dataset, DatasetError
from models.layers.cached_source import VECTORS
from models.method import MAIN, Method, Stream
from models.training.checkpoint import RunState
from models.training.config import RunConfig
from tfrecords_tools import count, one_domain, read
from tfrecords_tools.batch import Batch
from tfrecords_tools.selection import ALL_HASHES
from tfrecords_tools.vectors import RowVectors

EXTRA = "extra rows of "  # + folder: a stream that the run adds, not the method


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
    plans: dict[str, StreamPlan] = {}
    asked = _asked_streams(method, config)
    if config.one_domain_batches:
        _check_one_stream(method, asked)
    # Those that last as long as an epoch come last: they need its steps.
    for name, stream in sorted(asked.items(), key=lambda s: s[1].per_epoch):
        source = _source(name, stream, dataset)
        domains = tuple(stream.domains) or method.schema.domains
        rows = count.count_rows(
            source,
            split=stream.split,
            domains=domains,
            days=config.train_days,
            hash_range=stream.hash_range,
        )
        if not any(rows.values()) and stream.event_only:
            continue  # the event is told so when it draws
        if not any(rows.values()):
            is_part = stream.hash_range != ALL_HASHES
            raise ValueError(
                f"stream {name!r} must have rows; {source.data_dir} has none in split "
                f"{stream.split!r} for {', '.join(domains)}"
                + (f" on days {config.train_days}" if config.train_days else "")
                + (f" in hash_range {stream.hash_range}." if is_part else ".")
            )
        batch_size = (
            _rows_to_last(sum(rows.values()), main_plan(plans).steps_per_epoch)
            if stream.per_epoch
            else _rows_by_share(name, stream, config)
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


def _source(name: str, stream: Stream, dataset: Dataset) -> Dataset:
    """Returns the data set that a stream reads."""
    if not stream.path:
        return dataset
    try:
        source = Dataset.open(dataset.data_dir / stream.path)
    except DatasetError as error:
        raise ValueError(
            f"stream {name!r} must be a finished folder {stream.path} of "
            f"{dataset.data_dir}; got: {error} Streams are made by "
            "pipeline.select_samples and pipeline.augment."
        ) from error
    if source.info.fingerprint != dataset.info.fingerprint:
        raise ValueError(
            f"stream {name!r} must have the fingerprint {dataset.info.fingerprint} "
            f"of {dataset.data_dir}; got {source.info.fingerprint} "
            f"({source.data_dir}). Make it again from this data set."
        )
    return source


def _rows_by_share(name: str, stream: Stream, config: RunConfig) -> int:
    """Returns the rows a step of a stream with a share of the batch size."""
    replicas = max(1, tf.distribute.get_strategy().num_replicas_in_sync)
    batch_size = round(config.batch_size * stream.batch_share)
    if batch_size < 1 or batch_size % replicas:
        raise ValueError(
            f"RunConfig.batch_size times the share {stream.batch_share} of stream "
            f"{name!r} must be a positive multiple of {replicas} devices; got "
            f"{batch_size}. Change batch_size."
        )
    return batch_size


def _rows_to_last(rows: int, steps: int) -> int:
    """Returns the fewest rows a step, equal on all devices, that are all in `steps`."""
    replicas = max(1, tf.distribute.get_strategy().num_replicas_in_sync)
    return replicas * -(-rows // (steps * replicas))


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
        hash_range=stream.hash_range,
        batch_size=256,
        keys=("row_id",),
        cache=False,
    )
    for batch in first.take(1):
        vectors.lookup(batch.keys["row_id"].numpy()[batch.valid.numpy()])
    return vectors


def _asked_streams(method: Method, config: RunConfig) -> dict[str, Stream]:
    """Returns the method's streams, and those that the run adds to its only one.

    Raises:
      ValueError: For added rows where the method reads several streams.
      LookupError: For an unknown domain.
    """
    streams = dict(method.streams())
    if not config.train_domains and not config.extra_rows:
        return streams
    trained = [name for name, stream in streams.items() if not stream.event_only]
    if trained != [MAIN]:
        raise ValueError(
            "RunConfig.train_domains and extra_rows are for methods that train on one "
            f"stream of rows; {config.method} has {', '.join(trained)}. Use its own "
            "settings."
        )
    for name in config.train_domains:
        if name not in method.schema.domains:
            raise lookup_error("train_domains", name, method.schema.domains)
    own = tuple(config.train_domains)
    streams = {
        name: stream if stream.domains else dataclasses.replace(stream, domains=own)
        for name, stream in streams.items()
    }
    for path, share in config.extra_rows.items():
        streams[EXTRA + path] = Stream(path=path, batch_share=share)
    return streams


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
        # What stands open: epoch of each of its streams, iterator.
        self._open: dict[str, tuple[list[int], Any]] = {}

    def remaining(self) -> int:
        """Returns how many steps can be done before some stream ends its epoch."""
        return min(
            plan.steps_per_epoch - self._drawn(name) % plan.steps_per_epoch
            for name, plan in self._trained.items()
        )

    def iterators(self) -> dict[str, Any]:
        """Returns an iterator per training stream, standing at the next batch."""
        return {name: self._iterator(name) for name in self._trained if _is_own(name)}

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
        parts = [name]
        if name == MAIN:
            parts += [part for part in self.plans if not _is_own(part)]
        places = [
            divmod(self._drawn(part), self.plans[part].steps_per_epoch)
            for part in parts
        ]
        epochs = [epoch for epoch, _ in places]
        if name not in self._open or self._open[name][0] != epochs:
            opened = [
                self._rows(part, *place)
                for part, place in zip(parts, places, strict=True)
            ]
            self._open[name] = (epochs, iter(self._distributed(opened)))
        return self._open[name][1]

    def _drawn(self, name: str) -> int:
        return self._state.drawn.get(name, 0)

    def _rows(self, name: str, epoch: int, skip: int) -> tf.data.Dataset:
        """Returns the batches of a stream from one on, of fixed size."""
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
            hash_range=plan.stream.hash_range,
            # Two streams over the same rows must not be in step with each other.
            shuffle_seed=self._config.seed + 1000003 * self._order.index(name),
            epoch=epoch,
            skip_batches=skip,
            keys=("row_id",) if plan.vectors else (),
            **own,
        )
        if plan.vectors:
            stream = join_vectors(stream, plan.vectors)
        # Equal parts of a fixed size, so that shapes stay static on every replica.
        replicas = self._strategy.num_replicas_in_sync
        if replicas == 1:
            return stream
        return stream.rebatch(plan.batch_size // replicas, drop_remainder=True)

    def _distributed(self, streams: Sequence[tf.data.Dataset]) -> Any:
        """Returns what the strategy reads: the rows of all streams in one batch."""
        batches = streams[0]
        if len(streams) > 1:
            batches = tf.data.Dataset.zip(tuple(streams)).map(_joined)
        if self._strategy.num_replicas_in_sync == 1:
            return batches
        return self._strategy.distribute_datasets_from_function(lambda _: batches)


def _is_own(name: str) -> bool:
    """Returns whether a stream is the method's: others join its main one."""
    return not name.startswith(EXTRA)


def _joined(*batches: Batch) -> Batch:
    """Returns the rows of all batches, one after another."""
    joined: Batch = tf.nest.map_structure(lambda *x: tf.concat(x, axis=0), *batches)
    return joined


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
