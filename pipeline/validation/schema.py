"""The TFDV schema of a data set: inferred once, then curated by hand and re-used."""

import pathlib
from typing import Any

from features import spec as spec_lib
from features.layout import canonical_name
from features.schema import LABEL_PREFIX
from features.spec import DatasetSpec
from pipeline import quiet
from pipeline.errors import JobError

SCHEMA_FILE = "schema.pbtxt"
ENVIRONMENTS = ("TRAINING", "SERVING")
MAX_STRING_DOMAIN = 50  # more distinct values are identifiers: new ones are normal
MIN_DOMAIN_MASS = 0.95  # share of values that a value list must hold
SHARE_THRESHOLD = 0.2  # largest change of one category's share (L-infinity)
SHAPE_THRESHOLD = 0.2  # Jensen-Shannon divergence of a number's histograms
# TFDV compares histograms of equal width: one large value moves all cuts, and made
# follower counts of successive days look unlike each other.
_LONG_TAILED = ("log", "bucketise")


def find_schema(
    train: Any,
    spec: DatasetSpec,
    *,
    schema_path: str | None = None,
    previous_data_dir: str | None = None,
) -> Any:
    """Returns the curated schema, else that of the previous data set, else a new one.

    Args:
      train: Statistics of all training rows.
      spec: The dataset spec.
      schema_path: A curated schema.pbtxt.
      previous_data_dir: Data set that is continued; without a schema of its own (it
        was prepared without statistics) one is inferred.

    Raises:
      JobError: For a schema that cannot be read.
    """
    if schema_path is not None:
        return load(pathlib.Path(schema_path))
    if previous_data_dir is not None:
        path = pathlib.Path(previous_data_dir) / SCHEMA_FILE
        if path.exists():
            return load(path, "previous_data_dir")
    return infer(train, spec)


def infer(train: Any, spec: DatasetSpec) -> Any:
    """Returns a schema that the training rows keep.

    Labels and weight are in TRAINING only.  Columns of few texts get the list of
    their values; those and the spec's numbers get a skew comparator (training rows
    against validation and test rows) and a drift comparator (this day against the
    one before).  Identifiers get neither, since new ones are normal; nor do numbers
    that the spec takes the log or quantiles of (see `_LONG_TAILED`).
    """
    long_tailed = {
        canonical_name(spec, spec_lib.raw_column(f), "number")
        for f in spec.features
        if isinstance(f, spec_lib.Numeric) and f.transform in _LONG_TAILED
    }
    schema = quiet.tfdv().infer_schema(train, max_string_domain_size=MAX_STRING_DOMAIN)
    del schema.default_environment[:]
    schema.default_environment.extend(ENVIRONMENTS)
    for feature in schema.feature:
        is_label = feature.name.startswith(LABEL_PREFIX)
        if is_label or (feature.name == "weight" and spec.weight is not None):
            feature.not_in_environment.append("SERVING")
        # A small domain need not have every value, nor every row every column.
        feature.presence.min_fraction = 0.0
        if feature.domain:
            feature.distribution_constraints.min_domain_mass = MIN_DOMAIN_MASS
            for comparator in (feature.skew_comparator, feature.drift_comparator):
                comparator.infinity_norm.threshold = SHARE_THRESHOLD
        elif _is_number(feature) and feature.name not in long_tailed:
            for comparator in (feature.skew_comparator, feature.drift_comparator):
                comparator.jensen_shannon_divergence.threshold = SHAPE_THRESHOLD
    return schema


def _is_number(feature: Any) -> bool:
    from tensorflow_metadata.proto.v0 import schema_pb2

    return feature.type == schema_pb2.FLOAT


def load(path: pathlib.Path, owner: str = "schema") -> Any:
    """Returns the schema in a text file; `owner` names it in the error.

    Raises:
      JobError: For a schema that cannot be read.
    """
    from google.protobuf import text_format
    from tensorflow_metadata.proto.v0 import schema_pb2

    try:
        return text_format.Parse(path.read_text("utf-8"), schema_pb2.Schema())
    except (OSError, UnicodeDecodeError, text_format.ParseError) as error:
        raise JobError(
            f"{owner} must have a readable schema in text form; got {str(path)!r} "
            f"({error}). Take {SCHEMA_FILE} of a prepared data set and change that."
        ) from error
