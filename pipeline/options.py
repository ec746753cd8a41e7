"""What a preprocessing run is told besides the dataset spec; how jobs write rows."""

import pathlib
from typing import Literal

import pydantic
from pydantic import Field

from features.config import Config
from features.spec import DatasetSpec


class WriteOptions(Config):
    """How encoded rows are shuffled and written.  All of it changes the bytes."""

    spec: DatasetSpec
    seed: int = Field(0, ge=0, description="of the global shuffle")
    record_format: Literal["block", "row"] = "block"
    block_rows: int = Field(4096, ge=1, description="rows in a block at most")
    rows_per_file: int = Field(131_072, ge=1, description="rows in a file, about")
    compression: Literal["", "GZIP"] = ""


class PreprocessOptions(WriteOptions):
    """Options of one run of `pipeline.jobs.preprocess`.

    None of `user_buckets`, `beam_args` and the number of input files changes a byte
    of the result; `seed`, `record_format`, `block_rows`, `rows_per_file` and
    `compression` do.
    """

    raw_dir: str = Field(description="folder of the raw files, seen by every worker")
    data_dir: str = Field(description="folder to write, seen by every worker")
    statistics: bool = True
    statistics_sample_rate: float = Field(1.0, gt=0, le=1)
    statistics_by_day: bool = Field(False, description="a slice a day: daily drift")
    fail_on_anomalies: bool = False
    schema_path: str | None = Field(None, description="a curated schema.pbtxt")
    previous_data_dir: str | None = Field(
        None, description="data set whose vocabularies are continued"
    )
    overwrite: bool = False
    # A bucket is held in memory at once, by one worker: about 1 M rows is a good size.
    user_buckets: int = Field(32, ge=1, le=65_536)
    show_progress: bool = False
    beam_args: tuple[str, ...] = ()

    @pydantic.model_validator(mode="after")
    def _check(self) -> "PreprocessOptions":
        raw, data = pathlib.Path(self.raw_dir), pathlib.Path(self.data_dir)
        if data.absolute() == raw.absolute():
            raise ValueError("data_dir must not be raw_dir: raw files would be lost")
        if self.fail_on_anomalies and not self.statistics:
            raise ValueError("fail_on_anomalies needs statistics")
        if self.schema_path is not None and not self.statistics:
            raise ValueError("schema_path needs statistics, which it is to check")
        if self.statistics_by_day and self.spec.day_source is None:
            raise ValueError(
                "statistics_by_day needs keys.day, or a time that is not an order"
            )
        return self
