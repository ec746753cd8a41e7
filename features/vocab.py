"""Vocabularies: which text has which id, in the order of training counts.

Ids 0 (PAD_ID) and 1 (UNKNOWN_ID) are reserved; value i has id NUM_RESERVED_IDS + i.
A vocabulary grows by appending only, so an id never changes its meaning.
"""

import functools
import hashlib
import pathlib
from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from features import hashing
from features.spec import NUM_RESERVED_IDS, UNKNOWN_ID

_REBUILD_FACTOR = 2  # from here on Arrow's table per call costs more than one kept


class Vocab:
    """An ordered set of texts with ids.

    Attributes:
      array: The values, string [V], no nulls, none empty, none with a newline.
      version: 1 when fitted, one more with every `extend`.

    >>> vocab = Vocab(["b", "a"])
    >>> vocab.lookup(pa.array(["a", "b", "z", None])).tolist()
    [3, 2, 1, 1]
    """

    def __init__(self, values: pa.Array | Iterable[str], version: int = 1):
        if not isinstance(values, pa.Array):
            values = pa.array(list(values), pa.string())
        self.array: pa.StringArray = values.cast(pa.string())
        self.version = version
        if pc.sum(pc.invert(_admitted(self.array))).as_py():
            raise ValueError(
                "Vocab.values must be texts, not null, not empty and on one line; "
                f"got {self.array.filter(pc.invert(_admitted(self.array)))[0]!r}. "
                "Such values map to the unknown id; leave them out."
            )
        if len(pc.unique(self.array)) != len(self.array):
            counts = pc.value_counts(self.array)
            twice = counts.filter(pc.greater(counts.field("counts"), 1))
            raise ValueError(
                "Vocab.values must differ from each other; "
                f"got {twice.field('values')[0].as_py()!r} more than once."
            )

    @classmethod
    def from_counts(
        cls,
        values: pa.Array | Iterable[str],
        counts: np.ndarray,
        *,
        min_count: int = 1,
        max_size: int | None = None,
    ) -> "Vocab":
        """Returns the vocabulary of frequent values, most frequent first.

        Args:
          values: Distinct texts [N].
          counts: Training rows with each, int64 [N].
          min_count: Rarer values are left out.
          max_size: Values kept at most; None keeps all.

        Equal counts are ordered by the UTF-8 bytes of the value, so that the same
        counts give the same ids whatever order they come in.
        """
        return cls(_ranked(values, counts, min_count)[:max_size])

    def extend(
        self,
        values: pa.Array | Iterable[str],
        counts: np.ndarray,
        min_count: int = 1,
        max_size: int | None = None,
    ) -> "Vocab":
        """Returns the next version: new frequent values appended, none renumbered.

        `max_size` bounds old and new values together; old values always stay.
        """
        ranked = _ranked(values, counts, min_count)
        new = ranked.filter(pc.invert(pc.is_in(ranked, value_set=self.array)))
        if max_size is not None:
            new = new[: max(0, max_size - len(self))]
        return type(self)(pa.concat_arrays([self.array, new]), self.version + 1)

    def lookup(self, values: pa.Array) -> np.ndarray:
        """Returns ids int64 [B]; null, empty and unknown texts give UNKNOWN_ID.

        Args:
          values: Strings [B], plain or dictionary-encoded, nulls allowed.
        """
        uniques, codes = hashing.dictionary_codes(values)
        if len(self) > _REBUILD_FACTOR * len(uniques):
            texts = uniques.to_numpy(zero_copy_only=False)
            # An Index with a dtype: pandas need not guess the type of each text.
            found = self._index.get_indexer(pd.Index(texts, dtype=object))
        else:
            found = pc.index_in(uniques, value_set=self.array)
            found = pc.fill_null(found, -1).to_numpy(zero_copy_only=False)
        ids = np.where(found < 0, UNKNOWN_ID, found.astype(np.int64) + NUM_RESERVED_IDS)
        # The last entry serves code -1 (null).
        return np.append(ids, UNKNOWN_ID)[codes]

    @functools.cached_property
    def _index(self) -> pd.Index:
        return pd.Index(self.array.to_numpy(zero_copy_only=False), dtype=object)

    @functools.cached_property
    def values(self) -> list[str]:
        """The values in id order."""
        return self.array.to_pylist()

    @property
    def num_ids(self) -> int:
        """Rows of an embedding table: values and reserved ids."""
        return len(self.array) + NUM_RESERVED_IDS

    @functools.cached_property
    def sha256(self) -> str:
        """Hex digest of the file that `save` writes."""
        return hashlib.sha256(self._to_bytes()).hexdigest()

    def save(self, path: str | pathlib.Path) -> None:
        """Writes one value a line, UTF-8, line i holding id NUM_RESERVED_IDS + i."""
        pathlib.Path(path).write_bytes(self._to_bytes())

    @classmethod
    def load(cls, path: str | pathlib.Path, version: int = 1) -> "Vocab":
        """Returns what `save` wrote; `version` is kept in `dataset.json`."""
        text = pathlib.Path(path).read_bytes().decode("utf-8")
        return cls(text.split("\n")[:-1], version)

    def _to_bytes(self) -> bytes:
        return "".join(value + "\n" for value in self.values).encode("utf-8")

    def __len__(self) -> int:
        return len(self.array)

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Vocab)
            and self.version == other.version
            and self.array.equals(other.array)
        )

    __hash__ = None  # type: ignore[assignment]  # equal by content, not a key

    def __repr__(self) -> str:
        return f"Vocab({len(self)} values, version {self.version})"

    def __getstate__(self) -> dict[str, Any]:
        """The hash index is left out: Beam workers build it when they need it."""
        # combine_chunks-like copy: a slice would carry its whole buffer along.
        return {"array": pa.concat_arrays([self.array]), "version": self.version}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)


def hash_ids(values: pa.Array, num_buckets: int) -> np.ndarray:
    """Returns ids int64 [B]: NUM_RESERVED_IDS + fingerprint64(text) mod num_buckets.

    The same number as TensorFlow's `tf.strings.to_hash_bucket_fast` gives, plus the
    reserved ids.  Null and empty texts give UNKNOWN_ID: a serving graph, which knows
    no null, sends the empty text for a missing value.

    Args:
      values: Strings [B], plain or dictionary-encoded, nulls allowed.
      num_buckets: Number of buckets, at least 1.
    """
    if num_buckets < 1:
        raise ValueError(f"hash_ids.num_buckets must be >= 1; got {num_buckets}.")
    uniques, codes = hashing.dictionary_codes(values)
    buckets = hashing.fingerprints(uniques) % np.uint64(num_buckets)
    ids = buckets.astype(np.int64) + NUM_RESERVED_IDS
    ids[pc.equal(uniques, "").to_numpy(zero_copy_only=False)] = UNKNOWN_ID
    return np.append(ids, UNKNOWN_ID)[codes]


def _admitted(values: pa.StringArray) -> pa.BooleanArray:
    """Texts that one line of a file can hold."""
    good = pc.and_(
        pc.greater(pc.binary_length(values), 0),
        pc.invert(pc.match_substring_regex(values, "[\n\r]")),
    )
    return pc.fill_null(good, False)


def _ranked(
    values: pa.Array | Iterable[str], counts: np.ndarray, min_count: int
) -> pa.StringArray:
    """Admissible values with at least `min_count`, count descending, then bytes."""
    if not isinstance(values, pa.Array):
        values = pa.array(list(values), pa.string())
    counts = np.asarray(counts, np.int64)
    if len(values) != len(counts):
        raise ValueError(
            f"Vocab.counts must have one count a value; got {len(counts)} counts for "
            f"{len(values)} values."
        )
    table = pa.table({"value": values.cast(pa.string()), "count": counts})
    table = table.filter(
        pc.and_(pc.greater_equal(table["count"], min_count), _admitted(table["value"]))
    )
    order = pc.sort_indices(
        table, sort_keys=[("count", "descending"), ("value", "ascending")]
    )
    ranked = table["value"].take(order)
    return (
        pa.concat_arrays(ranked.chunks)
        if ranked.num_chunks
        else pa.array([], pa.string())
    )
