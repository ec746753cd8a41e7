import json

import numpy as np
import pytest
from sklearn import metrics as sklearn_metrics

from models.metrics.table import domain_task_metrics


def _inputs(n=300, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, (n, 2))
    domain = rng.choice(3, n, p=[0.6, 0.3, 0.1])
    labels[domain == 2, 1] = 1  # one class: undefined
    return {
        "domain": domain,
        "labels": labels,
        "logits": rng.normal(size=(n, 2)) + labels,
        "label_mask": rng.random((n, 2)) < 0.8,
        "user_key": rng.integers(0, 40, n),
        "domains": ("a", "b", "c"),
        "tasks": ("click", "like"),
    }


def test_cells_equal_sklearn_on_unmasked_rows():
    inputs = _inputs()
    table = domain_task_metrics(**inputs)
    assert [(c.domain, c.task) for c in table.cells][:2] == [
        ("a", "click"),
        ("a", "like"),
    ]
    for i, cell in enumerate(table.cells):
        d, t = divmod(i, 2)
        rows = (inputs["domain"] == d) & inputs["label_mask"][:, t]
        y, z = inputs["labels"][rows, t], inputs["logits"][rows, t]
        assert (cell.rows, cell.positives) == (rows.sum(), y.sum())
        if cell.auc is not None:
            assert cell.auc == pytest.approx(sklearn_metrics.roc_auc_score(y, z))
            loss = sklearn_metrics.log_loss(y, 1 / (1 + np.exp(-z)))
            assert cell.logloss == pytest.approx(loss)


def test_one_class_cell_is_undefined_skipped_and_listed():
    table = domain_task_metrics(**_inputs())
    assert table.undefined == (("c", "like"),)
    defined = [c.auc for c in table.cells if c.auc is not None]
    assert len(defined) == 5
    assert table.mean_domain_auc == pytest.approx(np.mean(defined))


def test_domain_auc_major_and_minor_weigh_by_evaluated_rows():
    table = domain_task_metrics(**_inputs(), major_sizes=(1, 2, 9), minor_sizes=(1,))
    click, like = table.cells[::2], table.cells[1::2]
    expected = sum(c.rows * c.auc for c in click) / sum(c.rows for c in click)
    assert table.domain_auc["click"] == pytest.approx(expected)
    assert table.major[1] == pytest.approx((click[0].auc + like[0].auc) / 2)
    assert set(table.major) == {1, 2}  # k above D is left out
    assert table.minor[1] == pytest.approx(click[2].auc)  # `like` is undefined there


def test_overall_pools_all_domains():
    inputs = _inputs()
    rows = inputs["label_mask"][:, 0]
    expected = sklearn_metrics.roc_auc_score(
        inputs["labels"][rows, 0], inputs["logits"][rows, 0]
    )
    assert domain_task_metrics(**inputs).overall[0].auc == pytest.approx(expected)


def test_order_of_rows_changes_nothing():
    inputs = _inputs()
    order = np.random.default_rng(5).permutation(300)
    moved = {k: v[order] if isinstance(v, np.ndarray) else v for k, v in inputs.items()}
    first, second = (domain_task_metrics(**i).scalars() for i in (inputs, moved))
    assert first == pytest.approx(second)


def test_table_is_strict_json_with_null_for_undefined():
    values = domain_task_metrics(**_inputs()).to_json()
    again = json.loads(json.dumps(values, allow_nan=False))
    assert again["cells"][5]["auc"] is None
    assert again["undefined"] == [["c", "like"]]
    assert again["num_undefined"] == 1


def test_scalars_hold_the_stopping_metric_and_every_cell():
    scalars = domain_task_metrics(**_inputs()).scalars()
    assert {"mean_domain_auc", "domain_auc", "auc/click", "gauc/b/like"} <= set(scalars)


def test_domain_out_of_range_is_refused():
    with pytest.raises(ValueError, match=r"domain must be in 0\.\.2"):
        domain_task_metrics(**{**_inputs(), "domain": np.full(300, 3)})


def test_logits_of_another_shape_are_refused():
    with pytest.raises(ValueError, match="logits must have shape"):
        domain_task_metrics(**{**_inputs(), "logits": np.zeros((300, 1))})
