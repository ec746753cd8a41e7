import numpy as np
import pytest
from scipy import stats

from models.metrics import noise
from models.metrics.compare import cell_shares, compare_runs


def _rows(n=120, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, n)
    a = np.round(rng.normal(size=n) + labels, 1)
    return labels, a, np.round(a + rng.normal(size=n), 1), rng.integers(0, 30, n)


def _brute_covariance(labels, scores):
    """DeLong from all pairs, O(n^2)."""
    aucs, s10, s01 = [], [], []
    for s in scores:
        x, y = s[labels == 1][:, None], s[labels == 0][None, :]
        wins = (x > y) + 0.5 * (x == y)
        aucs.append(wins.mean())
        s10.append(wins.mean(axis=1))
        s01.append(wins.mean(axis=0))
    m, n = len(s10[0]), len(s01[0])
    return np.array(aucs), np.cov(s10) / m + np.cov(s01) / n


def test_delong_covariance_equals_all_pairs():
    labels, a, b, _ = _rows()
    aucs, covariance = noise.delong_covariance(labels, [a, b])
    expected_aucs, expected = _brute_covariance(labels, [a, b])
    np.testing.assert_allclose(aucs, expected_aucs, rtol=1e-12)
    np.testing.assert_allclose(covariance, expected, rtol=1e-10)
    np.testing.assert_allclose(noise.delong_variance(labels, a), expected[0, 0])


def test_delong_test_is_the_z_test_of_the_difference():
    labels, a, b, _ = _rows()
    aucs, cov = _brute_covariance(labels, [a, b])
    error = np.sqrt(cov[0, 0] + cov[1, 1] - 2 * cov[0, 1])
    got = noise.delong_test(labels, a, b)
    np.testing.assert_allclose(got.difference, aucs[0] - aucs[1])
    np.testing.assert_allclose(got.standard_error, error)
    expected = 2 * stats.norm.sf(abs(aucs[0] - aucs[1]) / error)
    np.testing.assert_allclose(got.p_value, expected)


def test_delong_test_of_equal_scores_is_certain():
    labels, a, _, _ = _rows()
    assert noise.delong_test(labels, a, a) == noise.PairedTest(0.0, 0.0, 1.0)


def test_delong_test_of_one_class_is_undefined():
    got = noise.delong_test([1, 1], [0.1, 0.2], [0.3, 0.4])
    assert got == noise.PairedTest(None, None, None)


def test_single_positive_has_no_variance():
    assert noise.delong_variance([1, 0, 0], [0.3, 0.1, 0.2]) is None


def test_units_of_copied_rows_widen_the_error():
    """Every row four times says no more than once, if drawn together."""
    labels, a, b, _ = _rows()
    once = noise.delong_test(labels, a, b).standard_error
    copies = [np.repeat(x, 4) for x in (labels, a, b)]
    naive = noise.delong_test(*copies).standard_error
    honest = noise.delong_test(*copies, units=np.repeat(np.arange(120), 4))
    np.testing.assert_allclose(naive, once / 2, rtol=0.02)
    np.testing.assert_allclose(honest.standard_error, once, rtol=0.02)


@pytest.mark.parametrize("by_user", [False, True])
def test_bootstrap_agrees_with_delong(by_user):
    labels, a, b, users = _rows(n=1500)
    users = np.random.default_rng(1).integers(0, 300, 1500) if by_user else None
    got = noise.paired_bootstrap(
        domain=np.zeros(1500, int),
        labels=labels[:, None],
        scores_a=a[:, None],
        scores_b=b[:, None],
        units=users,
        num_resamples=400,
    )
    exact = noise.delong_test(labels, a, b, users)
    np.testing.assert_allclose(got.difference, exact.difference)
    np.testing.assert_allclose(got.standard_error, exact.standard_error, rtol=0.15)
    assert got.low < got.difference < got.high


def test_bootstrap_is_seeded():
    labels, a, b, _ = _rows()
    inputs = {
        "domain": np.arange(120) % 2,
        "labels": labels[:, None],
        "scores_a": a[:, None],
        "scores_b": b[:, None],
        "num_resamples": 20,
    }
    first = noise.paired_bootstrap(**inputs, seed=3)
    assert first == noise.paired_bootstrap(**inputs, seed=3)
    assert first != noise.paired_bootstrap(**inputs, seed=4)


def test_bootstrap_refuses_labels_of_one_class():
    with pytest.raises(ValueError, match="both classes"):
        noise.paired_bootstrap(
            domain=[0], labels=[[1]], scores_a=[[0.1]], scores_b=[[0.2]]
        )


def test_seed_test_equals_scipy():
    a, b = [0.71, 0.72, 0.74], [0.70, 0.72, 0.71]
    assert noise.seed_test(a, b).p_value == pytest.approx(stats.ttest_rel(a, b).pvalue)
    welch = stats.ttest_ind(a, [*b, 0.69], equal_var=False).pvalue
    assert noise.seed_test(a, [*b, 0.69]).p_value == pytest.approx(welch)


def test_seed_stats_of_one_seed_has_no_spread():
    assert noise.seed_stats([0.7]) == noise.SeedStats(0.7, None, 1)
    assert noise.seed_stats([1.0, 3.0]).std == pytest.approx(np.sqrt(2))


def _compare(runs_a, runs_b, labels, domain, **settings):
    return compare_runs(
        domain=domain,
        labels=labels,
        runs_a=runs_a,
        runs_b=runs_b,
        domains=("x", "y", "empty"),
        tasks=("click",),
        **settings,
    )


def test_compare_runs_of_one_seed_is_delong_by_cell_and_mean():
    labels, a, b, _ = _rows()
    domain = np.arange(120) % 2
    result = _compare([a[:, None]], [b[:, None]], labels[:, None], domain)
    tests = [
        noise.delong_test(labels[domain == d], a[domain == d], b[domain == d])
        for d in (0, 1)
    ]
    for cell, test in zip(result["cells"], tests, strict=True):
        assert cell["difference"] == pytest.approx(test.difference)
        assert cell["p_rows"] == pytest.approx(test.p_value)
        assert cell["p_seeds"] is None
    # Domains share no row: variances of the two halves add.
    error = np.hypot(*[t.standard_error for t in tests]) / 2
    assert result["mean"]["standard_error_rows"] == pytest.approx(error)
    assert result["undefined"] == [{"domain": "empty", "task": "click"}]


def test_mean_by_rows_is_the_difference_of_domain_auc_with_its_noise():
    """One task: rows / all rows; a second, with a third of them, counts the same."""
    labels, a, b, _ = _rows()
    domain = (np.arange(120) % 4 > 0).astype(int)  # 30 and 90 rows
    result = _compare([a[:, None]], [b[:, None]], labels[:, None], domain, by_rows=True)
    x, y = (cell["difference"] for cell in result["cells"])
    assert result["mean"]["difference"] == pytest.approx((x + 3 * y) / 4)
    errors = [cell["standard_error_rows"] for cell in result["cells"]]
    error = np.hypot(errors[0], 3 * errors[1]) / 4
    assert result["mean"]["standard_error_rows"] == pytest.approx(error)
    cells = [{"task": "click", "rows": n} for n in (30, 90)]
    cells += [{"task": "like", "rows": n} for n in (10, 30)]
    shares = cell_shares(cells, by_rows=True)
    np.testing.assert_allclose(shares, [1 / 8, 3 / 8, 1 / 8, 3 / 8])
    np.testing.assert_allclose(cell_shares(cells, by_rows=False), 1 / 4)


def test_compare_runs_row_noise_is_of_the_mean_over_seeds():
    labels, a, b, _ = _rows()
    c = a + 0.3 * b
    result = _compare(
        [a[:, None], c[:, None]],
        [b[:, None], b[:, None]],
        labels[:, None],
        np.zeros(120, int),
    )
    _, cov = _brute_covariance(labels, [a, c, b])
    contrast = np.array([0.5, 0.5, -1.0])
    expected = np.sqrt(contrast @ cov @ contrast)
    mean = result["mean"]
    assert mean["standard_error_rows"] == pytest.approx(expected)
    joint = np.hypot(mean["standard_error_rows"], mean["standard_error_seeds"])
    assert mean["standard_error"] == pytest.approx(joint)
