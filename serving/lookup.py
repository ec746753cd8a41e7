"""From raw values to model inputs inside the graph.

The TensorFlow twin of `features/encode.py`: same ids, same numbers; tests hold one
against the other.  Vocabularies become SavedModel assets, so the artefact needs
nothing beside itself.
"""

import pathlib
from collections.abc import Mapping

import numpy as np
import tensorflow as tf

from features import spec as spec_lib
from features.dataset import Dataset
from features.fitted import NumericParams
from features.spec import NUM_RESERVED_IDS, PAD_ID, UNKNOWN_ID
from serving.inputs import input_name, raw_inputs


class RawEncoder(tf.Module):
    """Encodes raw inputs to the features dict a model's `call` takes.

    Args:
      dataset: The prepared data set whose vocabularies and parameters to use.
      domains: Domain names of the model, in its own index order.
      unknown_domain: Name of the domain that takes rows of an unknown domain, or
        None: such a request is refused with an error that names the value.
      served: The domains that are served, default all; others count as unknown.
    """

    def __init__(
        self,
        dataset: Dataset,
        domains: tuple[str, ...],
        unknown_domain: str | None = None,
        served: tuple[str, ...] | None = None,
    ):
        super().__init__()
        self._spec = dataset.info.spec
        self._fitted = dataset.info.fitted
        self._domains = domains
        self._served = domains if served is None else served
        self._tables = {
            name: _vocab_table(dataset.data_dir / "vocab" / f"{name}.txt")
            for name in self._fitted.vocabs
        }
        self._kinds = {item.name: item.kind for item in raw_inputs(self._spec)}
        self._domain_default = self._default_index(unknown_domain)
        self._domain_table = self._make_domain_table()

    def _default_index(self, unknown_domain: str | None) -> int:
        if unknown_domain is not None:
            if unknown_domain not in self._served:
                raise LookupError(
                    "export.unknown_domain must be a domain of the model "
                    f"({', '.join(self._served)}); got {unknown_domain!r}."
                )
            return self._domains.index(unknown_domain)
        return self._local(self._fitted.domain_default)

    def _local(self, index: int) -> int:
        """Data set index -> model index; -1 for a domain that is not served."""
        if index < 0:
            return -1
        name = self._fitted.domains[index]
        return self._domains.index(name) if name in self._served else -1

    def _make_domain_table(self) -> tf.lookup.StaticHashTable:
        values = {
            raw: self._local(index) for raw, index in self._fitted.domain_values.items()
        }
        return tf.lookup.StaticHashTable(
            tf.lookup.KeyValueTensorInitializer(
                tf.constant(list(values), tf.string),
                tf.constant(list(values.values()), tf.int64),
            ),
            default_value=self._domain_default,
        )

    def __call__(
        self, raw: Mapping[str, tf.Tensor], *, check_domain: bool = True
    ) -> dict[str, tf.Tensor]:
        """Returns model features; every tensor keeps its leading dimension.

        Args:
          raw: Tensors by `RawInput.name`.  Inputs may be missing for a partial
            encoding; features that need them are left out.
          check_domain: Refuse rows of an unknown domain.
        """
        features: dict[str, tf.Tensor] = {}
        if self._spec.domain.column in raw:
            features["domain"] = self._domain(
                raw[self._spec.domain.column], check_domain
            )
        for feature in self._spec.features:
            name = input_name(feature)
            if isinstance(feature, spec_lib.Popularity):
                of = self._spec.feature(feature.of)
                if input_name(of) in raw:
                    ids = self._ids(of.name, raw[str(input_name(of))])
                    features[feature.name] = self._popularity(feature.name, ids)
            elif name is not None and name in raw:
                features[feature.name] = self._encode(feature, raw[name])
        return features

    def _encode(self, feature: spec_lib.Feature, values: tf.Tensor) -> tf.Tensor:
        match feature:
            case spec_lib.Numeric():
                return self._number(feature, values)
            case spec_lib.MultiValued():
                return self._list(feature.name, values, feature.max_length, last=False)
            case spec_lib.Sequence():
                return self._list(feature.name, values, feature.max_length, last=True)
            case _:
                return tf.cast(self._ids(feature.name, values), tf.int32)

    def _domain(self, values: tf.Tensor, check: bool) -> tf.Tensor:
        index = self._domain_table.lookup(values)
        if not check:
            return tf.cast(index, tf.int32)
        message = (
            f"request.{self._spec.domain.column} must lead to a domain of this model "
            f"({', '.join(self._served)}); a row has a value that does not. Send a "
            "known value, or export with --unknown_domain."
        )
        is_known = tf.debugging.assert_non_negative(index, message=message)
        with tf.control_dependencies([is_known] if is_known is not None else []):
            return tf.cast(index, tf.int32)

    def _ids(self, name: str, values: tf.Tensor) -> tf.Tensor:
        """Identifiers of any shape -> int64 ids; "" is missing, hence unknown."""
        table = self._spec.table_of(name)
        if table in self._tables:
            line = self._tables[table].lookup(values)
            return tf.where(
                line < 0, tf.constant(UNKNOWN_ID, tf.int64), line + NUM_RESERVED_IDS
            )
        buckets = self._spec.feature(table).encoding.num_buckets
        ids = NUM_RESERVED_IDS + tf.strings.to_hash_bucket_fast(values, buckets)
        return tf.where(values == "", tf.constant(UNKNOWN_ID, tf.int64), ids)

    def _list(
        self, name: str, values: tf.Tensor, length: int, *, last: bool
    ) -> tf.Tensor:
        """Ids [B, length] of the first or last `length` values before the padding.

        Dense: ragged tensors take ten times as many operations, each of which costs
        in tracing, in the file, and in a request of one row.
        """
        place = tf.range(1, tf.shape(values)[1] + 1)
        ends = tf.reduce_max(tf.where(values == "", 0, place), axis=1, keepdims=True)
        ends = tf.maximum(ends, 0)  # of no columns at all, the maximum is -2^31
        padded = tf.pad(values, [[0, 0], [0, length]], constant_values="")
        if last:
            first = tf.maximum(ends - length, 0)
            kept = tf.gather(padded, first + tf.range(length), batch_dims=1)
        else:
            kept = padded[:, :length]
        ids = tf.where(tf.range(length) < ends, self._ids(name, kept), PAD_ID)
        return tf.cast(tf.ensure_shape(ids, [None, length]), tf.int32)

    def _popularity(self, name: str, ids: tf.Tensor) -> tf.Tensor:
        table = tf.constant(np.asarray(self._fitted.popularity[name], np.float64))
        return _normalise(tf.gather(table, ids), self._fitted.numeric[name])

    def _number(self, feature: spec_lib.Numeric, values: tf.Tensor) -> tf.Tensor:
        if values.dtype == tf.string:
            text = tf.where(values == "", "nan", values)
            values = tf.strings.to_number(text, tf.float64)
        values = tf.cast(values, tf.float64)
        params = self._fitted.numeric[feature.name]
        if feature.transform == "bucketise":
            boundaries = tf.constant(params.boundaries, tf.float64)
            bucket = tf.searchsorted(boundaries, values, side="right")
            ids = tf.where(
                tf.math.is_nan(values), UNKNOWN_ID, bucket + NUM_RESERVED_IDS
            )
            return tf.cast(ids, tf.int32)
        if feature.transform == "log":
            values = tf.sign(values) * tf.math.log1p(tf.abs(values))
        return _normalise(values, params)


def _normalise(values: tf.Tensor, params: NumericParams) -> tf.Tensor:
    scaled = (values - params.shift) / params.scale
    scaled = tf.where(tf.math.is_nan(scaled), tf.zeros_like(scaled), scaled)
    return tf.cast(scaled, tf.float32)


def _vocab_table(path: pathlib.Path) -> tf.lookup.StaticHashTable:
    return tf.lookup.StaticHashTable(
        tf.lookup.TextFileInitializer(
            str(path),
            key_dtype=tf.string,
            key_index=tf.lookup.TextFileIndex.WHOLE_LINE,
            value_dtype=tf.int64,
            value_index=tf.lookup.TextFileIndex.LINE_NUMBER,
        ),
        default_value=-1,
    )
