"""Vectors of nodes and nodes like the seeds, against plain loops; their settings."""

import apache_beam as beam
import numpy as np
import pytest

from features.config import ConfigError
from pipeline import select_samples as command
from pipeline.chain import Chain, Walk
from pipeline.selection import SelectOptions
from pipeline.similarity import SimilarOptions, parse_settings
from pipeline.transforms import graph_similar, graph_vectors, record_batches
from tests.pipeline import similar_data

CAP, SEED = 8, 5


def make_edges(groups=4, size=12, baskets=60, clicks=5, stray=1, seed=0):
    """Returns (basket, node): a basket has nodes of its group and a few of any."""
    rng = np.random.default_rng(seed)
    edges = []
    for basket in range(baskets):
        own = rng.choice(size, clicks, replace=False) + basket % groups * size
        edges += [(basket + 1000, int(node) + 2) for node in own]
        strays = rng.integers(0, groups * size, stray)
        edges += [(basket + 1000, int(node) + 2) for node in strays]
    return edges


class _Both(beam.PTransform):
    """Links -> vectors, and the nodes near the seeds, as one collection."""

    def __init__(self, similar, buckets):
        super().__init__()
        self.similar, self.buckets = similar, buckets

    def expand(self, found):
        vectors = found | graph_vectors.NodeVectors(
            self.similar, degree_cap=CAP, seed=SEED, num_buckets=self.buckets
        )
        near = vectors | graph_similar.NearestToSeeds(self.similar, self.buckets)
        return (vectors, near) | beam.Flatten()


class Found:
    """Vectors by node, ascending, as batches and arrays, and the nodes near a seed."""

    def __init__(self, batches):
        self.batches = [b for b in batches if "vector" in b.schema.names]
        whole = record_batches.concat(self.batches)
        order = np.argsort(whole["node"].to_numpy())
        self.node = whole["node"].to_numpy()[order].tolist()
        self.is_seed = graph_vectors.seed_flags(whole)[order].tolist()
        self.vectors = graph_vectors.vectors(whole)[order]
        near = [b for b in batches if "hop" in b.schema.names]
        assert {hop for b in near for hop in b["hop"].to_pylist()} <= {3}
        self.near = {node for b in near for node in b["node"].to_pylist()}


def find(path, edges, seeds, *, parts=1, order=None, buckets=3, **similar):
    """Runs both steps by Beam."""
    batches = similar_data.run_steps(
        path,
        _Both(SimilarOptions(**similar), buckets),
        edges=similar_data.link_batches(edges, parts, order),
        seeds=similar_data.seed_batches(seeds, min(parts, 2)),
    )
    return Found(batches)


def near_of(batches, **similar):
    """The nodes near a seed: the steps of the second part, without a runner."""
    options = SimilarOptions(**similar)
    merge = graph_similar._SmallestHashes(options.max_seeds)
    seeds = merge([graph_similar._seeds(batch) for batch in batches])
    compare = graph_similar._Compare(options.min_cosine, options.top_n)
    links = [link for batch in batches for link in compare.process(batch, seeds)]
    if not links:
        return set()
    best = graph_similar._keep_best((0, links), options.top_n)
    return set(best["node"].to_pylist())


SEEDS = {2, 3, 14, 30, 999}  # the last has no edge
SIMILAR = {"dim": 8, "top_n": 3, "min_cosine": 0.3}


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    path = tmp_path_factory.mktemp("found") / "batches"
    return find(path, make_edges(clicks=9), SEEDS, **SIMILAR)  # more than the cap


@pytest.mark.parametrize("min_count", [1, 2])
def test_cosines_equal_a_float64_factorisation_of_plain_counts(
    min_count, found, tmp_path
):
    edges = make_edges(clicks=9)
    if min_count == 1:
        found = find(tmp_path / "b", edges, SEEDS, **SIMILAR, min_count=1)
    expected, cosines = similar_data.plain_cosines(
        edges, degree_cap=CAP, min_count=min_count, dim=8, width=64, seed=SEED
    )
    assert found.node == expected
    is_seed = [node in SEEDS for node in found.node]
    assert found.is_seed == is_seed
    steps = found.vectors.astype(np.float64)
    assert np.abs(steps @ steps.T / 2**22 - cosines).max() < 2e-3


@pytest.mark.parametrize(
    ("top_n", "min_cosine"), [(3, 0.3), (1, 0.3), (4, 0.9), (99, 0.5)]
)
def test_nodes_are_the_nearest_of_each_seed_by_a_plain_loop(
    top_n, min_cosine, found, monkeypatch
):
    monkeypatch.setattr(graph_similar.graph, "PAIRS_AT_ONCE", 40)  # many blocks
    steps = found.vectors.astype(np.int64)
    expected = similar_data.like_seeds(
        found.node, steps @ steps.T, SEEDS, min_cosine * 2**22, top_n
    )
    near = near_of(found.batches, top_n=top_n, min_cosine=min_cosine)
    assert near == expected
    assert near
    assert not near & SEEDS
    if (top_n, min_cosine) == (3, 0.3):
        assert near == found.near  # by Beam


def test_groups_that_share_no_basket_stay_apart(tmp_path):
    # Two groups of 12 nodes, no strays: a seed of the first leads to its group only.
    edges = make_edges(groups=2, baskets=40, clicks=8, stray=0)
    settings = {"dim": 2, "top_n": 99, "min_cosine": 0.9}
    assert find(tmp_path / "b", edges, {2}, **settings).near == set(range(3, 14))


def test_same_vectors_and_nodes_for_any_order_split_and_buckets(found, tmp_path):
    edges, rng = make_edges(clicks=9), np.random.default_rng(1)
    assert found.near
    for parts, buckets in ((2, 1), (5, 7)):
        again = find(
            tmp_path / "b",
            edges,
            SEEDS,
            parts=parts,
            buckets=buckets,
            order=rng.permutation(len(edges)),
            **SIMILAR,
        )
        assert (again.node, again.is_seed) == (found.node, found.is_seed)
        assert (again.vectors == found.vectors).all()
        assert again.near == found.near


def test_more_nodes_by_top_n_and_fewer_by_min_cosine(found):
    def near(top_n, min_cosine):
        return near_of(found.batches, top_n=top_n, min_cosine=min_cosine)

    one, three, many = (near(top_n, 0.2) for top_n in (1, 3, 50))
    assert one < three < many
    assert len(one) <= 4
    assert len(three) <= 12
    assert near(50, 0.95) < near(50, 0.6) < many


def test_only_so_many_seeds_are_compared(found):
    settings = {"top_n": 2, "min_cosine": 0.3}
    few, more, whole = (
        near_of(found.batches, max_seeds=most, **settings) for most in (1, 2, 4)
    )
    assert 0 < len(few) <= 2
    assert few < more < whole == near_of(found.batches, **settings)
    assert near_of(found.batches[::-1], max_seeds=2, **settings) == more


def test_without_common_baskets_there_is_no_node(tmp_path):
    assert find(tmp_path / "b", [(1000, 2), (1001, 3)], {2}).near == set()
    nothing = similar_data.run_steps(
        tmp_path / "n",
        _Both(SimilarOptions(), 3),
        edges=similar_data.link_batches([], 1),
        seeds=similar_data.seed_batches({2}, 1),
    )
    assert sum(batch.num_rows for batch in nothing) == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"min_cosine": 1.5}, "min_cosine must be above 0 and below 1; got 1.5. Lower"),
        ({"top_n": 0}, r"similar.top_n: .*greater than or equal to 1 \(got 0\)"),
        ({"dim": 5000}, r"similar.dim: .*less than or equal to 512 \(got 5000\)"),
        ({"sides": ["items", "items"]}, "sides must name each side once; got items, i"),
        ({"sides": ["pages"]}, "'users' or 'items'"),
        ({"topn": 5}, "unknown key; known: .*Did you mean 'top_n'"),
    ],
)
def test_settings_that_cannot_be_are_explained(settings, message):
    values = {"data_dir": "data", "target_domains": ["mini"], "similar": settings}
    with pytest.raises(ConfigError, match=message) as caught:
        SelectOptions.parse(values)
    assert "SelectOptions.similar" in str(caught.value)


def test_settings_of_the_command_line_are_typed():
    assert parse_settings([]) == {}
    texts = ["min_cosine=0.5", "sides=[items]"]
    assert parse_settings(texts) == {"min_cosine": 0.5, "sides": ["items"]}
    for text in ("top_n", "=3"):
        with pytest.raises(ConfigError, match="must be followed by name=value; got"):
            parse_settings([text])


def test_help_names_the_defaults():
    (flag,) = (a for a in command.parser()._actions if a.dest == "similar")
    texts = [word.strip(",") for word in flag.help.split() if "=" in word]
    assert SimilarOptions.parse(parse_settings(texts)) == SimilarOptions()
    assert [text.partition("=")[0] for text in texts] == list(
        SimilarOptions.model_fields
    )


def test_a_chain_of_days_hands_its_settings_on(tmp_path):
    similar = {"sides": ["items"], "min_cosine": 0.5}
    values = {"dataset": "planted_ecat", "raw_dir": "raw", "run": {"method": "ecat"}}
    values["select"] = {"target_domains": ["d1"], "similar": similar}
    walk = Walk(Chain.parse(values), tmp_path)
    (select,) = (c for c in walk.commands(20240201, 20240201) if c.stage == "select")
    args, rest = command.parser().parse_known_args(select.arguments[2:])
    assert rest == []
    assert args.cutoff_day == 20240131
    assert parse_settings(args.similar) == similar
