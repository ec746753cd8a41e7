"""Epinions ratings with category and time point, by Tang et al.

Takes `ratings.csv` (plain or .gz; columns user_id, product_id, category_id, rating,
helpfulness, time_point) or the publisher's `rating_with_timestamp.mat`.
"""

import io
import pathlib
import zlib
from collections.abc import Collection, Iterator

import numpy as np
import pyarrow as pa
import scipy.io

from features.spec import Source, Table
from pipeline.readers import base, files
from pipeline.readers.base import Reader, ReadError, ReadResult, Shard

COLUMNS = (
    "user_id",
    "product_id",
    "category_id",
    "rating",
    "helpfulness",
    "time_point",
)
MAT_FILES = ("rating_with_timestamp.mat", "epinions_rating_with_timestamp.mat")


class EpinionsReader(Reader):
    """Reads the ratings as one shard; the trust graph is not part of the log."""

    def shards(
        self,
        source: Source,
        raw_dir: str | pathlib.Path,
        columns: Collection[str] | None = None,
    ) -> list[Shard]:
        """See `Reader.shards`."""
        base.check_options("epinions", source.options, {})
        path = base.need_file(raw_dir, "epinions", "ratings.csv", *MAT_FILES)
        if ".mat" in path.suffixes:
            keep = base.wanted_columns(COLUMNS, columns, (), where=str(path))
            return [Shard(str(path), columns=keep)]
        base.wanted_columns(
            files.column_names(str(path), "csv"), COLUMNS, (), where=str(path)
        )
        return files.file_shards([str(path)], columns)

    def read(self, shard: Shard) -> Iterator[ReadResult]:
        """See `Reader.read`."""
        if ".mat" in pathlib.Path(shard.path).suffixes:
            table = _mat(shard.path)
            return base.slices(table.select(list(shard.columns or COLUMNS)))
        return files.read_shard(shard)

    def read_table(
        self,
        table: Table,
        raw_dir: str | pathlib.Path,
        columns: Collection[str] | None = None,
    ) -> pa.Table:
        """See `Reader.read_table`; the publisher has none, a general file will do."""
        return files.FileReader().read_table(table, raw_dir, columns)


def _mat(path: str) -> pa.Table:
    try:
        content = scipy.io.loadmat(io.BytesIO(base.file_bytes(path)))
    except (
        scipy.io.matlab.MatReadError,
        ValueError,
        TypeError,
        NotImplementedError,
        zlib.error,
    ) as error:
        raise ReadError(f"{path} must be a whole MATLAB file: {error}.") from error
    found = [
        value
        for value in content.values()
        if isinstance(value, np.ndarray) and value.ndim == 2
    ]
    if len(found) != 1 or found[0].shape[1] != len(COLUMNS) or not len(found[0]):
        raise ReadError(
            f"{path} must hold one matrix of {len(COLUMNS)} columns "
            f"({', '.join(COLUMNS)}); got {[value.shape for value in found]}."
        )
    columns = found[0].astype(np.int64).T
    return pa.table({n: c for n, c in zip(COLUMNS, columns, strict=True)})
