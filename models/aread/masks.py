"""Arithmetic of expert masks: what is alive, candidates, pruning, overlap.

A mask is a tuple of bool arrays, one per pair of neighbouring layers: entry l is
[..., N_l, N_{l+1}], True where the edge from an expert to one of the next layer is
kept.  Scores are float arrays of the same shapes.  All is numpy: masks are small, and
searches must repeat bit for bit.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np

Mask = tuple[np.ndarray, ...]
MAX_DRAWS = 100  # then the unflipped mask is taken, which is always valid


def live(mask: Sequence[np.ndarray]) -> Mask:
    """Returns only the edges that lie on a path from the first layer to the last.

    So every expert with an edge has one in and one out (first and last layer: one of
    them).  One pass up and one down is the fixed point: removing edges that lead
    nowhere cuts no other path.

    Args:
      mask: As in this module, at least one entry; leading axes are free.
    """
    mask = [np.asarray(m, bool) for m in mask]
    reached = [np.ones(mask[0].shape[:-1], bool)]
    for m in mask:
        reached.append((m & reached[-1][..., :, None]).any(-2))
    leads = [np.ones((*mask[-1].shape[:-2], mask[-1].shape[-1]), bool)]
    for m in reversed(mask):
        leads.insert(0, (m & leads[0][..., None, :]).any(-1))
    return tuple(
        m & reached[i][..., :, None] & leads[i + 1][..., None, :]
        for i, m in enumerate(mask)
    )


def has_path(mask: Sequence[np.ndarray]) -> np.ndarray:
    """Returns whether a path goes from the first layer to the last: bool [...]."""
    return live(mask)[-1].any((-2, -1))


def count(mask: Sequence[np.ndarray]) -> np.ndarray:
    """Returns the number of kept edges over all layers: int [...]."""
    return np.sum([np.sum(m, axis=(-2, -1)) for m in mask], axis=0)


def num_edges(mask: Sequence[np.ndarray]) -> int:
    """Returns the number of edges that there are, kept or not."""
    return sum(m.shape[-2] * m.shape[-1] for m in mask)


def density(mask: Sequence[np.ndarray]) -> np.ndarray:
    """Returns the kept share of all edges: float [...].

    The paper calls this number sparsity.
    """
    return count(mask) / num_edges(mask)


def floor_edges(mask: Sequence[np.ndarray], min_density: float) -> int:
    """Returns the least number of edges with at least this density."""
    return int(np.ceil(min_density * num_edges(mask) - 1e-9))


def scores_of(
    gates: Sequence[np.ndarray], rank: Literal["fan_in", "gate"]
) -> tuple[np.ndarray, ...]:
    """Returns what edges are ranked by, in the layout of a mask.

    Args:
      gates: [..., N_{l+1}, N_l] softmax values for each layer.
      rank: `fan_in`: gate times N_l, so that 1 is the mean of every layer; `gate`:
        the gate itself, by which layers of many inputs come last.
    """
    turned = [np.swapaxes(np.asarray(g, np.float64), -1, -2) for g in gates]
    return tuple(g * (g.shape[-2] if rank == "fan_in" else 1) for g in turned)


def top(scores: Sequence[np.ndarray], keep_rate: float, floor: int) -> Mask:
    """Returns the mask of the highest scores, dead edges removed.

    As many as `keep_rate` of all edges, and more, one by one, until at least `floor`
    are alive.  Ties are resolved by position, earlier layers first.

    Args:
      scores: [N_l, N_{l+1}] for each layer.
      keep_rate: In (0, 1].
      floor: Edges, at most all of them.
    """
    total = num_edges(scores)
    order = np.argsort(-_flat(scores), kind="stable")
    for kept in range(max(1, round(keep_rate * total)), total + 1):
        chosen = np.zeros(total, bool)
        chosen[order[:kept]] = True
        mask = live(_unflat(chosen, scores))
        if count(mask) >= max(1, floor):
            return mask
    raise ValueError(f"top.floor must be at most {total} edges; got {floor}.")


def candidate(
    start: Mask, flip_rate: float, floor: int, rng: np.random.Generator
) -> Mask:
    """Returns `start` with random edges inverted, dead edges removed.

    Draws again until a path is there and at least `floor` edges are alive; after
    `MAX_DRAWS` it is `start`.

    Args:
      start: A live mask of at least `floor` edges.
      flip_rate: Probability of each edge, in [0, 1].
      floor: Edges.
      rng: Advances by one draw per edge and try.
    """
    flat = _flat(start)
    for _ in range(MAX_DRAWS):
        flipped = flat ^ (rng.random(flat.size) < flip_rate)
        mask = live(_unflat(flipped, start))
        if count(mask) >= max(1, floor):
            return mask
    return start


def prune(mask: Mask, scores: Sequence[np.ndarray], rate: float, floor: int) -> Mask:
    """Returns the mask without its lowest `rate` of kept edges.

    Edges go one by one from the lowest score up, with what dies by it; one whose loss
    would leave no path, or fewer than `floor` edges, stays.  At least one edge goes if
    it can; the result is a subset of `mask`.

    Args:
      mask: A live mask.
      scores: Of each edge, shaped as the mask.
      rate: In (0, 1).
      floor: Edges.
    """
    remaining = int(count(mask))
    goal = max(floor, remaining - max(1, round(rate * remaining)))
    kept = _flat(mask)
    order = np.argsort(_flat(scores), kind="stable")
    for edge in order[kept[order]]:
        if count(mask) <= goal:
            break
        if not _flat(mask)[edge]:
            continue  # died with another
        without = _flat(mask)
        without[edge] = False
        trial = live(_unflat(without, mask))
        if count(trial) >= max(1, floor):
            mask = trial
    return mask


def active_outputs(mask: Sequence[np.ndarray]) -> np.ndarray:
    """Returns K(M): which experts of the last layer have a kept edge, bool [..., N_L].

    Source: Luo et al., AAAI 2025 (AREAD), Eq. (7).
    Differs: none.
    """
    return np.asarray(mask[-1], bool).any(-2)


def overlap(first: np.ndarray, second: np.ndarray) -> float:
    """Returns |A and B| / |A or B| of two masks of a layer; 1 if both are empty.

    Source: Luo et al., AAAI 2025 (AREAD), section Mask Analysis.
    Differs: two empty masks (none of ours is) count as equal.
    """
    first, second = np.asarray(first, bool), np.asarray(second, bool)
    union = int((first | second).sum())
    return float((first & second).sum() / union) if union else 1.0


def overlap_table(mask: np.ndarray) -> np.ndarray:
    """Returns the overlap of every two domains: [D, D] for a layer's [D, N, M]."""
    flat = np.asarray(mask, bool).reshape(len(mask), -1).astype(np.float64)
    both = flat @ flat.T
    kept = flat.sum(1)
    either = kept[:, None] + kept[None] - both
    return np.where(either > 0, both / np.maximum(either, 1), 1.0)


def extreme_pairs(overlap: np.ndarray) -> dict[str, tuple[int, int]]:
    """Returns the domains of the most and of the least overlap, the first on ties.

    Args:
      overlap: What `overlap_table` gives.

    Returns:
      `most` and `least`; `most` only where there is one pair, nothing for one domain.
    """
    first, second = np.triu_indices(len(overlap), 1)
    values = overlap[first, second]
    if not len(values):
        return {}
    at = {"most": values.argmax(), "least": values.argmin()}
    found = {name: (int(first[i]), int(second[i])) for name, i in at.items()}
    return found if len(values) > 1 else {"most": found["most"]}


def _flat(parts: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate([np.ravel(p) for p in parts])


def _unflat(flat: np.ndarray, like: Sequence[np.ndarray]) -> Mask:
    ends = np.cumsum([p.size for p in like])
    parts = np.split(flat, ends[:-1])
    return tuple(part.reshape(p.shape) for part, p in zip(parts, like, strict=True))
