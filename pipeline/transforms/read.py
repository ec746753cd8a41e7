"""Raw files -> canonical batches, bad rows apart."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import apache_beam as beam
import pyarrow as pa

from features import canonical
from features.spec import DatasetSpec
from pipeline import progress, registry
from pipeline.errors import JobError
from pipeline.transforms import join

ROWS = "rows"
REJECTED = "rejected"
READ = "read"  # rows read, rejected ones included


class ReadRows(beam.PTransform):
    """Gives `rows`, `rejected` and `read`: every raw row once, in one of the first two.

    `rows` are canonical batches (`features.canonical`) with the side tables joined;
    `rejected` are batches of `reason` and `row`; `read` are row counts.  Bounded;
    order depends on the runner.
    """

    def __init__(self, spec: DatasetSpec, raw_dir: str) -> None:
        super().__init__()
        self.spec, self.raw_dir = spec, raw_dir

    def expand(self, begin: beam.pvalue.PBegin) -> Any:
        """Adds the steps; the list of shards is made in the launcher."""
        source = self.spec.source
        reader = registry.reader(source.reader)
        tables = reader.tables(source, self.raw_dir)
        columns = {*canonical.raw_columns(self.spec)}
        columns |= {table.log_key or table.key for table in tables.values()}
        shards = list(reader.shards(source, self.raw_dir, columns))
        if not shards:
            raise JobError(
                f"source.path must lead to raw rows; got {source.path!r} below "
                f"{self.raw_dir} (data set {self.spec.name}), where nothing lies."
            )
        side = (
            begin
            | "List side tables" >> beam.Create(sorted(tables), reshuffle=False)
            | "Read side tables"
            >> beam.ParDo(_ReadTable(self.spec, self.raw_dir, tables))
        )
        return (
            begin
            | "List shards" >> beam.Create(shards)
            | "Spread shards" >> beam.Reshuffle()
            | "Read and check rows"
            >> beam.ParDo(
                _ReadShard(self.spec, self.raw_dir), beam.pvalue.AsList(side)
            ).with_outputs(REJECTED, READ, main=ROWS)
        )


class _ReadTable(beam.DoFn):
    def __init__(
        self, spec: DatasetSpec, raw_dir: str, tables: Mapping[str, Any]
    ) -> None:
        self._spec, self._raw_dir, self._tables = spec, raw_dir, tables

    def process(self, name: str) -> Iterator[tuple[str, str, str, bytes]]:
        where = self._tables[name]
        reader = registry.reader(self._spec.source.reader)
        wanted = where.columns or canonical.raw_columns(self._spec)
        table = reader.read_table(where, self._raw_dir, wanted)
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
        log_key = where.log_key or where.key
        yield name, where.key, log_key, sink.getvalue().to_pybytes()


@beam.typehints.with_output_types(pa.RecordBatch)
class _ReadShard(beam.DoFn):
    def __init__(self, spec: DatasetSpec, raw_dir: str) -> None:
        self._spec, self._raw_dir = spec, raw_dir
        self._rows_read = beam.metrics.Metrics.counter("preprocess", "rows_read")

    def setup(self) -> None:
        self._indexes: list[join.TableIndex] | None = None

    def process(
        self, shard: Any, tables: Iterable[tuple[str, str, str, bytes]]
    ) -> Iterator[Any]:
        if self._indexes is None:
            self._indexes = [
                join.TableIndex(
                    f"source.{name}", pa.ipc.open_stream(data).read_all(), key, log_key
                )
                for name, key, log_key, data in sorted(tables)
            ]
        reader = registry.reader(self._spec.source.reader)
        for result in reader.read(shard):
            read = 0
            if result.rejected is not None and result.rejected.num_rows:
                read += result.rejected.num_rows
                yield beam.pvalue.TaggedOutput(REJECTED, result.rejected)
            if result.batch is not None and result.batch.num_rows:
                read += result.batch.num_rows
                yield from self._canonical(result.batch)
            self._rows_read.inc(read)
            progress.report("read", read)
            yield beam.pvalue.TaggedOutput(READ, read)

    def _canonical(self, batch: pa.RecordBatch) -> Iterator[Any]:
        for index in self._indexes or ():
            batch = index.join(batch)
        good, rejected = canonical.canonicalise(self._spec, batch)
        if rejected.num_rows:
            yield beam.pvalue.TaggedOutput(REJECTED, rejected)
        if good.num_rows:
            yield good
