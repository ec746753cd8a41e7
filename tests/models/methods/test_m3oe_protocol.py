"""What M3oE's protocol promises of data and metrics (properties 11 and 12)."""

import numpy as np
import pytest

from features.registry import dataset_spec
from models.metrics import auc as auc_lib
from models.metrics.table import domain_task_metrics
from pipeline.readers.movielens_1m import published_position

AGES = {"1", "18", "25", "35", "45", "50", "56"}  # of users.dat
RATINGS = (1, 2, 3, 4, 5)
# AUC x 100 of d1t1 d1t2 d2t1 d2t2 d3t1 d3t2 and the mean the paper prints.
PAPER = {
    "movielens": ((76.61, 78.13, 77.51, 79.33, 74.47, 76.09), 77.02),
    "kuairand": ((64.85, 65.89, 66.03, 68.31, 66.21, 66.91), 66.37),
}
SPECS = ("movielens_1m", "movielens_1m_random")


@pytest.mark.parametrize("name", SPECS)
def test_like_implies_click(name):
    click, like = dataset_spec(name).tasks
    assert (click.name, like.name) == ("click", "like")
    assert click.compare == like.compare == "gt"
    labels = {r: (r > float(click.value), r > float(like.value)) for r in RATINGS}
    assert [labels[r][0] for r in RATINGS] == [False, False, False, True, True]
    assert [labels[r][1] for r in RATINGS] == [False, False, False, False, True]
    assert all(a >= b for a, b in labels.values())


@pytest.mark.parametrize("name", SPECS)
def test_domain_map_covers_every_age_once(name):
    groups = dataset_spec(name).domain.domains.values()
    listed = [age for ages in groups for age in ages]
    assert len(groups) == 3
    assert set(listed) == AGES
    assert len(listed) == len(set(listed))


@pytest.mark.parametrize("seed", range(3))
def test_published_order_shares_at_most_one_user_between_consecutive_parts(seed):
    rng = np.random.default_rng(seed)
    users = np.sort(rng.integers(0, 60, 2000))
    movies = rng.zipf(1.5, 2000) % 300
    position = published_position(users, movies)
    assert sorted(position) == list(range(2000))
    train, validation, test = np.split(users[np.argsort(position)], [1600, 1800])
    assert len(set(train) & set(validation)) <= 1
    assert len(set(validation) & set(test)) <= 1
    assert not set(train) & set(test)


def cell(percent):
    """Labels and scores of 100 + 100 rows whose exact AUC is `percent` / 100."""
    beaten, rest = divmod(round(percent * 100), 100)  # of 100 positives x 100 negatives
    negatives = np.arange(100.0)
    positives = np.full(100, -1.0)
    positives[:beaten] = 100.0
    positives[beaten] = rest - 0.5
    scores = np.concatenate([negatives, positives])
    return np.repeat([0, 1], 100), scores / 100


@pytest.mark.parametrize("name", PAPER)
def test_mean_of_six_cells_is_the_papers_mean(name):
    aucs, mean = PAPER[name]
    cells = [cell(a) for a in aucs]
    labels = np.concatenate(
        [np.stack([cells[2 * d][0], cells[2 * d + 1][0]], 1) for d in range(3)]
    )
    logits = np.concatenate(
        [np.stack([cells[2 * d][1], cells[2 * d + 1][1]], 1) for d in range(3)]
    )
    table = domain_task_metrics(
        domain=np.repeat([0, 1, 2], 200),
        labels=labels,
        logits=logits,
        domains=("d1", "d2", "d3"),
        tasks=("t1", "t2"),
    )
    assert [round(100 * c.auc, 2) for c in table.cells] == list(aucs)
    assert round(100 * table.mean_domain_auc, 2) == mean


# Row RelaImpr of the paper's Table 2: M3oE, its best baseline (underlined), percent.
RELAIMPR = [
    (76.61, 76.07, 2.07),
    (78.13, 77.27, 3.15),
    (77.51, 76.87, 2.38),
    (79.33, 78.73, 2.09),
    (74.47, 73.97, 2.09),
    (76.09, 75.41, 2.68),
    (77.02, 76.35, 2.54),
    (64.85, 64.33, 3.63),
    (65.89, 64.30, 11.12),
    (66.21, 65.88, 2.08),
    (66.91, 65.47, 9.31),  # though MMOE-MDMT has 66.10
    (66.37, 65.52, 5.48),
]


@pytest.mark.parametrize(("auc", "baseline", "percent"), RELAIMPR)
def test_relaimpr_over_the_best_baseline_is_the_papers(auc, baseline, percent):
    got = auc_lib.relaimpr(auc / 100, baseline / 100)
    assert round(100 * got, 2) == percent
