"""Stable 64-bit hashes of Arrow columns: row ids, user keys, hashed features.

Every hash is a pure function of the value: it does not depend on batching, order,
process or platform.  Text is hashed by FarmHash fingerprint64, once per distinct
value of a batch; numbers by the finaliser of splitmix64 over their bits.
"""

import farmhash
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

NULL_HASH = np.uint64(0x6A09E667F3BCC909)  # any constant: fraction of sqrt(2)
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # 2**64 / golden ratio: step of splitmix64
_MUL_1 = np.uint64(0xBF58476D1CE4E5B9)  # multipliers of splitmix64
_MUL_2 = np.uint64(0x94D049BB133111EB)
_KEY_SHIFT = np.uint64(2)  # 62 bits: keys stay non-negative as int64, and distinct


def mix64(values: np.ndarray) -> np.ndarray:
    """Returns splitmix64's bijection of each uint64: nearby values spread apart."""
    x = values.astype(np.uint64, copy=False) + _GOLDEN
    x = (x ^ (x >> np.uint64(30))) * _MUL_1
    x = (x ^ (x >> np.uint64(27))) * _MUL_2
    return x ^ (x >> np.uint64(31))


def to_key(hashes: np.ndarray) -> np.ndarray:
    """Returns uint64 hashes as non-negative int64 of 62 bits."""
    return (hashes >> _KEY_SHIFT).astype(np.int64)


def dictionary_codes(values: pa.Array) -> tuple[pa.StringArray, np.ndarray]:
    """Returns the distinct texts of a column and, per row, which it is.

    Args:
      values: Strings [B], plain or dictionary-encoded, nulls allowed.

    Returns:
      Distinct values (string, no nulls) and codes int64 [B], -1 for null.
    """
    if isinstance(values, pa.ChunkedArray):
        values = values.combine_chunks()
    if pa.types.is_dictionary(values.type) and values.dictionary.null_count:
        values = values.dictionary_decode()
    if not pa.types.is_dictionary(values.type):
        if not pa.types.is_string(values.type):
            values = values.cast(pa.string())
        values = pc.dictionary_encode(values)
    indices = values.indices
    if indices.null_count:
        indices = pc.fill_null(indices, -1)
    uniques = values.dictionary
    if not pa.types.is_string(uniques.type):
        uniques = uniques.cast(pa.string())
    return uniques, indices.to_numpy(zero_copy_only=False).astype(np.int64)


def fingerprints(values: pa.Array) -> np.ndarray:
    """Returns FarmHash fingerprint64 of each text, uint64 [B] (no nulls)."""
    texts = values.to_numpy(zero_copy_only=False)  # faster than to_pylist
    hashes = map(farmhash.fingerprint64, texts)
    return np.fromiter(hashes, np.uint64, count=len(texts))


def hash_text(values: pa.Array) -> np.ndarray:
    """Returns uint64 [B]: fingerprint64, or NULL_HASH for null."""
    uniques, codes = dictionary_codes(values)
    # The last entry serves code -1.
    table = np.append(fingerprints(uniques), NULL_HASH)
    return table[codes]


def hash_number(values: pa.Array) -> np.ndarray:
    """Returns uint64 [B] of an integer or float64 column; null has its own hash."""
    filled = pc.fill_null(values, 0) if values.null_count else values
    numbers = filled.to_numpy(zero_copy_only=False)
    if numbers.dtype.kind == "f":
        numbers = (numbers.astype(np.float64) + 0.0).view(np.uint64)  # -0.0 is 0.0
    hashes = mix64(numbers.astype(np.int64, copy=False).view(np.uint64))
    if values.null_count:
        hashes[values.is_null().to_numpy(zero_copy_only=False)] = NULL_HASH
    return hashes


def hash_lists(values: pa.ListArray) -> np.ndarray:
    """Returns uint64 [B] of a list<string> column; order of elements matters."""
    lengths = list_lengths(values)
    elements = hash_text(values.flatten())
    starts = np.cumsum(lengths) - lengths
    position = np.arange(len(elements)) - np.repeat(starts, lengths)
    mixed = mix64(elements + mix64(position.astype(np.uint64)))
    # Wrapping sums: the difference of two prefix sums is the sum of a list.
    sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(mixed, dtype=np.uint64)])
    return sums[starts + lengths] - sums[starts] + mix64(lengths.astype(np.uint64))


def list_lengths(values: pa.ListArray) -> np.ndarray:
    """Returns int64 [B], 0 for null lists (as `flatten` takes them)."""
    lengths = pc.list_value_length(values)
    if lengths.null_count:
        lengths = pc.fill_null(lengths, 0)
    return lengths.to_numpy(zero_copy_only=False).astype(np.int64)


def hash_column(name: str, values: pa.Array) -> np.ndarray:
    """Returns uint64 [B]: hash of the values, salted by the column's name."""
    kind = values.type
    if pa.types.is_list(kind):
        hashes = hash_lists(values)
    elif pa.types.is_string(kind) or pa.types.is_dictionary(kind):
        hashes = hash_text(values)
    else:
        hashes = hash_number(values)
    return mix64(hashes + np.uint64(farmhash.fingerprint64(name)))
