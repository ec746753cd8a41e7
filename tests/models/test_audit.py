import models  # noqa: F401 - chooses Keras 2, so it comes first

import csv  # isort: skip

import numpy as np  # isort: skip
import pytest  # isort: skip
import tensorflow as tf  # isort: skip

from features.schema import FeatureInfo  # isort: skip
from models.audit import Matrix, WeightAudit, num_values  # isort: skip
from models.comparison import report  # isort: skip
from models.training.result import load_matrices, save_matrices  # isort: skip


def add(audit, weights, source, mask, values=None):
    audit.add(
        tf.constant(weights),
        tf.constant(source),
        tf.constant(mask),
        None if values is None else tf.constant(values),
    )


def test_table_has_hand_counted_means_by_source_and_value(tmp_path):
    audit = WeightAudit(["books", "music"], num_values=4)
    add(audit, [0.25, 0.75, 1.0, 0.5], [0, 0, 1, 0], [1.0, 1.0, 1.0, 0.0], [2, 3, 2, 2])
    add(audit, [0.5, 0.05], [0, 1], [1.0, 1.0], [2, 9])  # 9 is no value
    whole, value = audit.table()[:2], audit.table()[2:]
    assert [(w["source"], w["rows"]) for w in whole] == [("books", 3), ("music", 2)]
    assert whole[0]["mean_weight"] == pytest.approx(0.5)
    assert whole[1]["mean_weight"] == pytest.approx(0.525)
    bins = [whole[0][f"rows_{i / 10}"] for i in range(10)]
    assert bins == [0, 0, 1, 0, 0, 1, 0, 1, 0, 0]
    assert whole[1]["rows_0.9"] == 1  # a weight of 1 is in the last bin
    expected = [("books", 2, 2, 0.375), ("books", 3, 1, 0.75), ("music", 2, 1, 1.0)]
    assert [tuple(line.values()) for line in value] == expected
    audit.write_csv(tmp_path / "audit.csv")
    with (tmp_path / "audit.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [line["source"] for line in lines] == [
        "books",
        "music",
        "books",
        "books",
        "music",
    ]
    assert [p.name for p in tmp_path.iterdir()] == ["audit.csv"]
    # 5 rows: a fifth each at .25, .55, .75, .95 and .05.
    assert audit.sample(10) == pytest.approx(
        [0.05] * 2 + [0.25] * 2 + [0.55] * 2 + [0.75] * 2 + [0.95] * 2
    )
    figure = report.audit_figure(tmp_path / "audit.csv")
    heights = [bar.get_height() for bar in figure.axes[0].patches]
    assert heights == pytest.approx([0.5, 0.525])


@pytest.mark.parametrize("content", ["", "<html>\na,b\nc,d,e\n", "source,rows\na,1\n"])
def test_file_that_is_no_audit_is_named(content, tmp_path):
    path = tmp_path / "audit_x.csv"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"audit_x.csv must be an audit.*Delete it"):
        report.audit_figure(path)


def test_recent_means_are_those_since_the_mark():
    audit = WeightAudit(["books", "music"])
    assert audit.means() == {}
    add(audit, [0.2], [0], [1.0])
    audit.mark()
    add(audit, [0.6], [0], [1.0])
    assert audit.recent() == pytest.approx({"books": 0.6})
    assert audit.means() == pytest.approx({"books": 0.4})


def test_counts_stay_exact_beyond_float32():
    audit = WeightAudit(["books"])
    audit.totals.assign(tf.fill([1, 12], tf.constant(2.0**24, tf.float64)))
    add(audit, [0.5], [0], [1.0])
    assert audit.table()[0]["rows"] == 2**24 + 1


def test_audited_feature_must_be_a_coarse_id():
    fields = [
        FeatureInfo("city", "user", "id", "city", 40, 4),
        FeatureInfo("user", "user", "id", "user", 90_000, 4),
    ]
    assert num_values("CCTL", "", fields) == 0
    assert num_values("CCTL", "city", fields) == 40
    with pytest.raises(ValueError, match="at most 10000 values; got 'user'"):
        num_values("CCTL", "user", fields)
    with pytest.raises(LookupError, match=r"CCTL\.audit_feature must be one of"):
        num_values("CCTL", "town", fields)


def test_padding_rows_change_nothing():
    audit = WeightAudit(["books"])
    add(audit, [0.5, 0.5], [0, 0], [0.0, 0.0])
    assert not np.any(audit.totals)


def test_matrices_come_back_and_are_drawn_with_their_names(tmp_path):
    values = np.array([[0.0, 0.5, 1.0], [0.25, 0.0, 0.0]])
    save_matrices(tmp_path, {"use": Matrix(["a", "b"], ["x", "y", "z"], values)})
    (found,) = load_matrices(tmp_path).values()
    np.testing.assert_array_equal(found.values, values)
    axes = report.matrix_figure(found).axes[0]
    np.testing.assert_array_equal(axes.images[0].get_array(), values)
    assert [t.get_text() for t in axes.get_yticklabels()] == ["a", "b"]
    save_matrices(tmp_path / "none", {})
    assert load_matrices(tmp_path / "none") == {}
