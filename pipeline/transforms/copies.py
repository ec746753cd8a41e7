"""Draws rows of unpopular items in major domains and copies them to minor ones."""

import zlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa

from features import hashing
from features.derive import augmentation, graph
from features.schema import LABEL_PREFIX
from features.spec import NUM_RESERVED_IDS
from pipeline.augmentation import NEGATIVE, POSITIVE, AugmentOptions, ColdItems, Quotas
from pipeline.transforms import combine, prepared, record_batches

COPIES, COUNTS = "copies", "counts"
COPY_DOMAIN, COPY_NUMBER = "copy_domain", "copy_number"
# Candidates are drawn bin by bin; a constant, since the draw depends on their order.
_BINS, _BIN_SHIFT = 1 << 10, 63 - 10
_KINDS = (POSITIVE, NEGATIVE)


class CountItems(beam.PTransform):
    """Batches -> one array `items, rows, positives`, int64 [3, N], items ascending.

    Rows whose label is masked, and unknown items, are left out.
    """

    def __init__(self, item: str, task: str) -> None:
        super().__init__()
        self.item, self.task = item, task

    def expand(self, rows: beam.PCollection[pa.RecordBatch]) -> beam.PCollection:
        """Adds the steps."""
        return (
            rows
            | "Count items" >> beam.Map(_count_items, self.item, self.task)
            | "Add up items"
            >> beam.CombineGlobally(
                combine.MergePartials(_merge_items, np.zeros((3, 0), np.int64))
            )
        )


class DrawCopies(beam.PTransform):
    """Batches -> `copies` (place, copy_domain, copy_number) and `counts`.

    Counts are dicts by ("copies", kind, domain index) and ("candidates", kind).

    Args:
      item: Column that tells items apart.
      options: Of the run.
      quotas: Copies by kind and domain.
      cold: Side input of `ColdItems`.
    """

    def __init__(
        self, *, item: str, options: AugmentOptions, quotas: Quotas, cold: Any
    ) -> None:
        super().__init__()
        self.item, self.options, self.quotas, self.cold = item, options, quotas, cold

    def expand(self, rows: beam.PCollection[pa.RecordBatch]) -> Any:
        """Adds the steps."""
        binned = (
            rows
            | "Find candidates"
            >> beam.ParDo(
                _Candidates(self.item, self.quotas, self.options.seed), self.cold
            )
            | "Group candidates" >> beam.GroupByKey()
        )
        weights = (
            binned
            | "Weigh bins" >> beam.Map(_bin_weight)
            | "Gather weights"
            >> beam.CombineGlobally(combine.MergePartials(combine.add_counts, {}))
        )
        return binned | "Draw" >> beam.ParDo(
            _Draw(self.quotas, self.options.seed), beam.pvalue.AsSingleton(weights)
        ).with_outputs(COUNTS, main=COPIES)


@beam.typehints.with_output_types(tuple[int, pa.RecordBatch])
class _Candidates(beam.DoFn):
    """Rows of unpopular items in major domains, by kind and bin of their order."""

    def __init__(self, item: str, quotas: Quotas, seed: int) -> None:
        self._item, self._quotas, self._seed = item, quotas, seed

    def process(
        self, batch: pa.RecordBatch, cold: ColdItems
    ) -> Iterator[tuple[int, pa.RecordBatch]]:
        item, domain, label = (
            record_batches.integers(batch, name)
            for name in (self._item, "domain", LABEL_PREFIX + self._quotas.task)
        )
        chosen = np.isin(domain, self._quotas.majors)
        chosen &= graph.contains(item, cold.items[cold.is_cold])
        wanted = {kind for kind, _ in self._quotas.copies}
        for number, kind in enumerate(_KINDS):
            rows = np.flatnonzero(chosen & (label == (kind == POSITIVE)))
            if kind not in wanted or not len(rows):
                continue
            row_id = record_batches.integers(batch, "row_id")[rows]
            order = (
                record_batches.order_keys(row_id, self._seed) >> np.uint64(1)
            ).astype(np.int64)
            weight = cold.weights[np.searchsorted(cold.items, item[rows])]
            place = record_batches.integers(batch, prepared.PLACE)[rows]
            found = pa.RecordBatch.from_arrays(
                [pa.array(place), pa.array(order), pa.array(weight)],
                [prepared.PLACE, "order", "weight"],
            )
            yield from record_batches.split_by(
                found, number * _BINS + (order >> _BIN_SHIFT)
            )


@beam.typehints.with_output_types(pa.RecordBatch)
class _Draw(beam.DoFn):
    def __init__(self, quotas: Quotas, seed: int) -> None:
        self._quotas, self._seed = quotas, seed

    def process(
        self,
        keyed: tuple[int, Iterable[pa.RecordBatch]],
        bin_weights: Mapping[int, int],
    ) -> Iterator[Any]:
        kind = _KINDS[keyed[0] // _BINS]
        place, weight = _in_order(keyed[1])
        own = {b: w for b, w in bin_weights.items() if b // _BINS == keyed[0] // _BINS}
        before = sum(w for b, w in own.items() if b < keyed[0])
        total = sum(own.values())
        counts: dict[Any, int] = {("candidates", kind): len(place)}
        for (of_kind, domain), draws in sorted(self._quotas.copies.items()):
            if of_kind != kind:
                continue
            times = augmentation.times_drawn(
                weight, before, total, draws, _start(self._seed, kind, domain)
            )
            counts["copies", kind, domain] = int(times.sum())
            ends = np.cumsum(times)
            number = np.arange(times.sum()) - np.repeat(ends - times, times)
            yield pa.RecordBatch.from_arrays(
                [
                    pa.array(np.repeat(place, times)),
                    pa.array(np.full(len(number), domain, np.int64)),
                    pa.array(number, pa.int64()),
                ],
                [prepared.PLACE, COPY_DOMAIN, COPY_NUMBER],
            )
        yield beam.pvalue.TaggedOutput(COUNTS, counts)


@beam.typehints.with_output_types(pa.RecordBatch)
def as_copies(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Returns whole rows with another domain; all else stays, but for the row id.

    Args:
      batch: Encoded rows with `copy_domain` and `copy_number` beside.
    """
    domain, number, row_id = (
        record_batches.integers(batch, name)
        for name in (COPY_DOMAIN, COPY_NUMBER, "row_id")
    )
    # Another id, as for any other content: the shuffle then parts copies from rows.
    salt = hashing.mix64((domain << 32 | number).astype(np.uint64))
    new_id = hashing.to_key(hashing.mix64(row_id.astype(np.uint64) ^ salt))
    arrays = []
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        new = {"domain": domain, "row_id": new_id}.get(name)
        arrays.append(column if new is None else pa.array(new, column.type))
    return pa.RecordBatch.from_arrays(arrays, batch.schema.names)


def _count_items(batch: pa.RecordBatch, item: str, task: str) -> np.ndarray:
    items, label = (
        record_batches.integers(batch, name) for name in (item, LABEL_PREFIX + task)
    )
    known = (items >= NUM_RESERVED_IDS) & (label >= 0)
    distinct, codes = np.unique(items[known], return_inverse=True)
    rows = np.bincount(codes, minlength=len(distinct))
    positives = np.bincount(codes, label[known] == 1, minlength=len(distinct))
    return np.stack([distinct, rows, positives.astype(np.int64)])


def _merge_items(partials: list[np.ndarray]) -> np.ndarray:
    items, rows, positives = np.concatenate(partials, axis=1)
    distinct, codes = np.unique(items, return_inverse=True)
    sums = np.zeros((2, len(distinct)), np.int64)
    for values, total in zip((rows, positives), sums, strict=True):
        np.add.at(total, codes, values)
    return np.concatenate([distinct[None], sums])


def _bin_weight(keyed: tuple[int, Iterable[pa.RecordBatch]]) -> dict[int, int]:
    weights = (record_batches.integers(b, "weight") for b in keyed[1])
    return {keyed[0]: sum(int(w.sum()) for w in weights)}


def _in_order(batches: Iterable[pa.RecordBatch]) -> tuple[np.ndarray, np.ndarray]:
    """Returns places and weights in the order of the row's hash.

    Rows of one hash have one content: their order among each other is no matter.
    """
    batch = record_batches.concat(batches)
    place, order, weight = (
        record_batches.integers(batch, name)
        for name in (prepared.PLACE, "order", "weight")
    )
    ranked = np.lexsort([place, order])
    return place[ranked], weight[ranked]


def _start(seed: int, kind: str, domain: int) -> float:
    """Returns a number between 0.001 and 0.999 by seed, kind and domain."""
    text = zlib.crc32(f"{seed}/{kind}/{domain}".encode())
    mixed = int(hashing.mix64(np.array([text], np.uint64))[0])
    return 0.001 + 0.998 * mixed / 2**64
