"""A prepared data set on disk: `dataset.json` and what lies beside it.

Layout of `<data_dir>/`: `dataset.json`, `schema.pbtxt`, `vocab/`, `stats/`,
`anomalies/`, `train/`, `validation/`, `test/`, `rejected/`, `_SUCCESS`.
"""

import dataclasses
import functools
import hashlib
import json
import pathlib
from collections.abc import Mapping
from typing import Any, Literal

from features import schema as schema_lib
from features.fitted import Fitted
from features.spec import SPLITS, DatasetSpec

SUCCESS_FILE = "_SUCCESS"
DATASET_FILE = "dataset.json"


class DatasetError(ValueError):
    """A prepared data set that is missing, unfinished or not the one expected."""


@dataclasses.dataclass(frozen=True)
class DatasetInfo:
    """All that `dataset.json` says.

    Attributes:
      spec: The dataset spec.
      fitted: Domains, vocabularies, numeric parameters: what encodes a raw row.
      counts: split -> domain -> {"rows": n, "labelled": {task: n},
        "positives": {task: n}}.
      unknown: split -> feature -> number of ids that became UNKNOWN_ID.
      rejected: reason -> rows.
      seed: Seed of the shuffle.
      record_format: "block" or "row".
      block_rows: Rows in a block at most (1 for "row").
      compression: "" or "GZIP".
      files: split -> file paths below the data folder, in reading order.
    """

    spec: DatasetSpec
    fitted: Fitted
    counts: Mapping[str, Mapping[str, Mapping[str, Any]]]
    unknown: Mapping[str, Mapping[str, int]]
    rejected: Mapping[str, int]
    seed: int
    record_format: Literal["block", "row"]
    block_rows: int
    compression: Literal["", "GZIP"]
    files: Mapping[str, tuple[str, ...]]

    @functools.cached_property
    def fingerprint(self) -> str:
        """16 hex digits: equal exactly when a model of one fits the other."""
        text = self.spec.fingerprint() + self.fitted.fingerprint()
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @functools.cached_property
    def columns(self) -> tuple[schema_lib.EncodedColumn, ...]:
        """Columns of a row on disk."""
        return schema_lib.encoded_columns(self.spec)

    @functools.cached_property
    def model_schema(self) -> schema_lib.ModelSchema:
        """Inputs, domains and tasks for a model."""
        return schema_lib.model_schema(
            self.spec, self.fitted.domains, self.fitted.num_ids(self.spec)
        )

    def num_rows(self, split: str, domain: str | None = None) -> int:
        """Rows of a split, of one domain or of all."""
        counts = self.counts.get(split, {})
        chosen = counts.values() if domain is None else [counts.get(domain, {})]
        return sum(c.get("rows", 0) for c in chosen)

    def to_json(self) -> str:
        """Returns the text of `dataset.json` (without vocabularies' content)."""
        values = {
            "spec": self.spec.model_dump(mode="json"),
            "spec_fingerprint": self.spec.fingerprint(),
            "fingerprint": self.fingerprint,
            "fitted": self.fitted.to_dict(),
            "counts": self.counts,
            "unknown": self.unknown,
            "rejected": self.rejected,
            "seed": self.seed,
            "record_format": self.record_format,
            "block_rows": self.block_rows,
            "compression": self.compression,
            "files": {k: list(v) for k, v in self.files.items()},
        }
        return json.dumps(values, indent=2, sort_keys=True) + "\n"

    def save(self, data_dir: str | pathlib.Path) -> None:
        """Writes `dataset.json` and `vocab/` (not `_SUCCESS`)."""
        data_dir = pathlib.Path(data_dir)
        self.fitted.save(data_dir)
        (data_dir / DATASET_FILE).write_text(self.to_json(), "utf-8")


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A prepared data set that was opened: its folder and its `DatasetInfo`."""

    data_dir: pathlib.Path
    info: DatasetInfo

    @classmethod
    def open(cls, data_dir: str | pathlib.Path) -> "Dataset":
        """Opens a finished data set.

        Raises:
          DatasetError: When the folder is missing, unfinished or damaged.
        """
        data_dir = pathlib.Path(data_dir)
        if not (data_dir / SUCCESS_FILE).exists():
            what = "is unfinished (no _SUCCESS)" if data_dir.exists() else "is missing"
            raise DatasetError(
                f"data_dir must be a finished data set; {data_dir} {what}. "
                "Run python -m pipeline.preprocess."
            )
        path = data_dir / DATASET_FILE
        try:
            values = json.loads(path.read_text("utf-8"))
        except (OSError, json.JSONDecodeError) as error:
            raise DatasetError(f"{path} must be readable JSON: {error}") from error
        info = DatasetInfo(
            spec=DatasetSpec.parse(values["spec"], where=str(path)),
            fitted=Fitted.load(data_dir, values["fitted"]),
            counts=values["counts"],
            unknown=values["unknown"],
            rejected=values["rejected"],
            seed=values["seed"],
            record_format=values["record_format"],
            block_rows=values["block_rows"],
            compression=values["compression"],
            files={k: tuple(v) for k, v in values["files"].items()},
        )
        if info.fingerprint != values["fingerprint"]:
            raise DatasetError(
                f"{path}: fingerprint must be {values['fingerprint']} as written; "
                f"its spec and vocabularies give {info.fingerprint}. A file was "
                "changed after the job: prepare the data set again."
            )
        return cls(data_dir, info)

    def files(self, split: str) -> tuple[pathlib.Path, ...]:
        """Paths of a split's record files, in reading order."""
        if split not in SPLITS:
            raise LookupError(
                f"split must be one of {', '.join(SPLITS)}; got {split!r}."
            )
        return tuple(self.data_dir / name for name in self.info.files.get(split, ()))
