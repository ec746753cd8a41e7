"""Families of runs shown as one result."""

import numpy as np
import pytest

from models.metrics.auc import auc
from models.training import evaluate, forms, measure, trainer
from models.training.evaluate import CountError, Scores
from tests.helpers import tiny_dataset
from tests.models.training import fakes


def test_expand_gives_domains_and_tasks_of_each_run(dataset):
    def cells(form, **changes):
        config = fakes.config(dataset.data_dir, form=form, **changes)
        singles = forms.expand(config, dataset)
        assert all(run.form == "mdmt" for run in singles.values())
        return {name: (run.domains, run.tasks) for name, run in singles.items()}

    every = ["d0", "d1", "d2"], ["task0", "task1"]
    assert cells("mdmt", domains=["d1"]) == {"": (["d1"], [])}
    assert cells("mtl") == {d: ([d], every[1]) for d in every[0]}
    assert cells("mdl", domains=["d2", "d0"]) == {
        t: (["d2", "d0"], [t]) for t in every[1]
    }
    assert list(cells("isolated", tasks=["task1"])) == [
        "d0.task1",
        "d1.task1",
        "d2.task1",
    ]


@pytest.mark.parametrize("form", ["mtl", "mdl", "isolated"])
def test_family_scores_every_row_and_cell_like_its_runs(tmp_path, form):
    dataset = tiny_dataset.make_dataset(tmp_path / "data", rows=1000, domains=2)
    config = fakes.config(dataset.data_dir, form=form, max_steps=2)
    result = trainer.train(config, tmp_path / "w")
    scores = Scores.load(result.scores_paths["test"])
    rows = tiny_dataset.make_rows(1000, domains=2).slice(900)
    assert scores.row_id.tolist() == list(range(900, 1000))
    np.testing.assert_array_equal(scores.domain, rows["domain"].to_numpy())
    assert (scores.domains, scores.tasks) == (("d0", "d1"), ("task0", "task1"))
    single = {"mtl": "d1", "mdl": "task0", "isolated": "d1.task0"}[form]
    own = Scores.load(tmp_path / "w" / "runs" / single / "scores_test.npz")
    chosen = own.domain == own.domains.index("d1")
    expected = auc(own.labels[chosen, 0], own.logits[chosen, 0])
    cell = result.metrics["test"]["cells"][2]
    assert (cell["domain"], cell["task"]) == ("d1", "task0")
    assert cell["auc"] == pytest.approx(expected, abs=1e-12)
    assert set(result.runs) == set(forms.expand(config, dataset))
    again = trainer.train(config, tmp_path / "w")
    assert again.to_json() == result.to_json()


def test_subset_run_counts_domains_within_itself(dataset, tmp_path):
    config = fakes.config(
        dataset.data_dir,
        max_epochs=1,
        domains=["d2", "d1"],
        tasks=["task1"],
        method_config={"two_streams": True},
    )
    result = trainer.train(config, tmp_path)
    scores = Scores.load(result.scores_paths["validation"])
    counts = (
        dataset.info.num_rows("validation", "d2"),
        dataset.info.num_rows("validation", "d1"),
    )
    assert tuple(np.bincount(scores.domain)) == counts
    assert scores.logits.shape == (sum(counts), 1)


def test_stream_of_fewer_domains_keeps_the_runs_indices(dataset):
    from models.training.streams import read_domains

    batches = read_domains(
        dataset, run_domains=("d2", "d1"), domains=("d1",), batch_size=64
    )
    for batch in batches:
        assert set(batch.domain.numpy()[batch.valid.numpy()]) == {1}


def test_join_tasks_refuses_other_rows():
    def scores(ids, task):
        one = np.zeros([len(ids), 1], np.float32)
        return evaluate.ordered(
            *(np.array(ids), np.array(ids), np.zeros(len(ids), np.int32)),
            *(one, one, np.ones(len(ids), np.float32), one),
            *(("d",), (task,), "test"),
        )

    assert evaluate.join_tasks([scores([2, 1], "a"), scores([1, 2], "b")]).tasks == (
        "a",
        "b",
    )
    with pytest.raises(CountError, match="row ids differ"):
        evaluate.join_tasks([scores([1, 2], "a"), scores([1, 3], "b")])


@pytest.mark.parametrize("metric", ["domain_auc", "auc/task1", "mean_logloss"])
def test_a_family_has_the_metric_it_stops_on_over_all_its_rows(
    dataset, tmp_path, metric
):
    config = fakes.config(dataset.data_dir, form="mtl", max_steps=2, metric=metric)
    result = trainer.train(config, tmp_path)
    scores = Scores.load(result.scores_paths["validation"])
    expected = measure.metrics_of(scores).scalars()[metric]
    assert result.best_metric == pytest.approx(expected, abs=1e-12)
