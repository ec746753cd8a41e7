"""Vectors of nodes from what they occur with, in arithmetic that has no order.

Counts of pairs become positive pointwise mutual information, a sparse matrix M [N, N].
Its truncated factorisation needs one pass: `Y = M R` with random signs R [N, W] keeps
the dot products of M's rows, so the leading right singular vectors of Y, projected on,
give the leading left ones of M, scaled (Halko et al., SIAM Review 2011, section 4).

R is a hash of the node and is never stored.  Every sum is one of integers, hence exact:
the same bits for any order and any cut of the rows.
"""

import numpy as np
from scipy import sparse

from features import hashing

WORD_BITS = 64
_PAIRS_AT_ONCE = 1 << 14  # pairs whose signs are in memory at once
_PMI_SCALE = 1 << 16  # steps a unit of information
_SKETCH_SCALE = 1 << 14  # steps of a unit vector's entries, which fit int16
_TURNED_STEP = 1 << 13  # a product of two such, brought down to 15 bits and a sign
VECTOR_SCALE = 1 << 11  # dot products of such vectors are exact even in float32
_LEAST_SHARE = 1e-6  # of all squares: smaller directions are rounding


def sketch_width(dim: int) -> int:
    """Returns the columns of the sketch for vectors of `dim`: four times, in words."""
    return -(-4 * dim // WORD_BITS) * WORD_BITS


def positive_information(
    count: np.ndarray, mass: np.ndarray, other_mass: np.ndarray, total: int
) -> np.ndarray:
    """Returns max(0, log(count total / (mass other_mass))) in steps, int64 [P].

    Args:
      count: [P] int64, how often a pair came.
      mass: [P] int64, pairs of its first node.
      other_mass: [P] int64, pairs of its second node.
      total: All pairs.
    """
    expected = mass.astype(np.float64) * other_mass / max(total, 1)
    information = np.log(count / expected)
    return np.rint(np.maximum(information, 0) * _PMI_SCALE).astype(np.int64)


def random_signs(node: np.ndarray, width: int, seed: int) -> np.ndarray:
    """Returns 1 or -1 by node and column, int64 [N, width]; a hash, no state.

    Args:
      node: [N] int64.
      width: Columns, a multiple of WORD_BITS.
      seed: Of the hash.
    """
    words = np.arange(width // WORD_BITS, dtype=np.uint64)
    salts = hashing.mix64(words + hashing.mix64(np.array([seed], np.uint64)))
    mixed = hashing.mix64(node.astype(np.uint64))
    bits = hashing.mix64(mixed[:, None] ^ salts).astype("<u8")
    return 2 * np.unpackbits(bits.view(np.uint8), axis=1).astype(np.int64) - 1


def sketch(
    row: np.ndarray, other: np.ndarray, weight: np.ndarray, width: int, seed: int
) -> np.ndarray:
    """Returns the rows of a sparse matrix times random signs, int64 [N, width].

    Memory is that of the result and of the signs of _PAIRS_AT_ONCE pairs.

    Args:
      row: [P] int64, ascending, each of 0..N-1.
      other: [P] int64, nodes of the columns.
      weight: [P] int64.
      width: Columns of the result.
      seed: Of the signs.
    """
    result = np.zeros((int(row[-1]) + 1 if len(row) else 0, width), np.int64)
    for start in range(0, len(row), _PAIRS_AT_ONCE):
        part = slice(start, start + _PAIRS_AT_ONCE)
        columns, column = np.unique(other[part], return_inverse=True)
        first, last = row[part][[0, -1]]
        shape = (last - first + 1, len(columns))
        cells = (weight[part], (row[part] - first, column))
        # A row may go on in the next part: integers may be added in any pieces.
        result[first : last + 1] += sparse.csr_matrix(cells, shape) @ random_signs(
            columns, width, seed
        )
    return result


def unit_rows(values: np.ndarray) -> np.ndarray:
    """Returns rows of length 1 in steps, int16 [N, W]; rows of zeros stay.

    Args:
      values: [N, W] int64.
    """
    return _scaled(values.astype(np.float64), _SKETCH_SCALE)


def gram(rows: np.ndarray) -> np.ndarray:
    """Returns rows.T @ rows, int64 [W, W], exact up to 2**25 rows.

    Args:
      rows: [N, W] of `unit_rows`.
    """
    values = rows.astype(np.float64)
    return (values.T @ values).astype(np.int64)


def leading_directions(squares: np.ndarray, dim: int) -> np.ndarray:
    """Returns the eigenvectors of the largest eigenvalues in steps, int16 [W, dim].

    Directions that only rounding fills are zeros.

    Args:
      squares: [W, W] int64, sum of `gram` over all rows.
      dim: Directions wanted, at most W.
    """
    values, vectors = np.linalg.eigh(squares.astype(np.float64))
    chosen = np.argsort(-values, kind="stable")[:dim]
    filled = values[chosen] > _LEAST_SHARE * np.trace(squares)
    return np.rint(vectors[:, chosen] * filled * _SKETCH_SCALE).astype(np.int16)


def turn(rows: np.ndarray, directions: np.ndarray) -> np.ndarray:
    """Returns unit vectors along the directions, in steps of VECTOR_SCALE, int16.

    Args:
      rows: [N, W] of `unit_rows`.
      directions: [W, dim] of `leading_directions`.
    """
    # Exact, so that it does not matter which rows are multiplied together.
    turned = rows.astype(np.float64) @ directions.astype(np.float64)
    return _scaled(np.rint(turned / _TURNED_STEP), VECTOR_SCALE)


def best_of_group(
    group: np.ndarray, node: np.ndarray, value: np.ndarray, most: int
) -> np.ndarray:
    """Returns positions of the `most` largest values of each group, int64.

    Of equal values that of the smaller node is first.  A larger `most` only adds.

    Args:
      group: [P] int64.
      node: [P] int64, distinct inside a group.
      value: [P] integers.
      most: At least 1.
    """
    order = np.lexsort([node, -value.astype(np.int64), group])
    ranked = group[order]
    first = np.r_[True, ranked[1:] != ranked[:-1]][: len(ranked)]
    starts = np.flatnonzero(first)
    rank = np.arange(len(ranked)) - np.repeat(
        starts, np.diff(np.append(starts, len(ranked)))
    )
    result: np.ndarray = order[rank < most]
    return result


def _scaled(values: np.ndarray, scale: int) -> np.ndarray:
    length = np.sqrt(np.square(values).sum(axis=1, keepdims=True))
    return np.rint(values / np.maximum(length, 1) * scale).astype(np.int16)
