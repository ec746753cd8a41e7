"""A trained and exported model: batch scores equal the evaluator's, row by row."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from features import synthetic
from features.registry import dataset_spec
from features.synthetic_world import SyntheticConfig
from models.training.config import RunConfig
from models.training.evaluate import Scorer
from models.training.restore import load_method
from models.training.trainer import train
from pipeline.jobs import batch_score, preprocess
from pipeline.options import PreprocessOptions
from serving.export import export

TOLERANCE = 2e-6  # float32 logits; the export reads raw values, the evaluator ids


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("parity")


@pytest.fixture(scope="module")
def run(folder):
    config = SyntheticConfig(rows=2500, num_users=60, num_items=80, dirty_rate=0)
    synthetic.generate(folder / "raw", config)
    spec = dataset_spec("synthetic")
    (first, *_) = spec.domain.values
    (history, *_) = (f for f in spec.features if f.kind == "sequence")
    joined = history.model_copy(update={"name": "in_first", "domains": [first]})
    spec = spec.model_copy(update={"features": [*spec.features, joined]})
    dataset = preprocess.run(
        PreprocessOptions(
            spec=spec,
            raw_dir=str(folder / "raw"),
            data_dir=str(folder / "data"),
            statistics=False,
            user_buckets=2,
        )
    )
    settings = RunConfig(
        method="mlp",
        method_config={"hidden_units": [8]},
        data_dir=str(dataset.data_dir),
        batch_size=512,
        max_epochs=1,
    )
    train(settings, folder / "run")
    return load_method(folder / "run")


@pytest.fixture(scope="module")
def model_dir(run, folder):
    return export(run.method, run.dataset, folder / "export", version=4).path


def evaluated(run, split):
    """Probability by row id and task, from the training graph on encoded rows."""
    scores = Scorer(run.method).score(run.dataset, split)
    probs = 1 / (1 + np.exp(-scores.logits.astype(np.float64)))
    return dict(zip(scores.row_id.tolist(), probs, strict=True)), scores.tasks


def batch_scored(run, model_dir, output_dir, **options):
    batch_score.run(
        batch_score.ScoreOptions(
            models={"m": str(model_dir)},
            data_dir=str(run.dataset.data_dir),
            output_dir=str(output_dir),
            num_shards=2,
            user_buckets=3,
            **options,
        )
    )
    parts = sorted((output_dir / "scores").iterdir())
    return pa.concat_tables([pq.read_table(path) for path in parts]).to_pylist()


def assert_equal(rows, expected, tasks):
    for row in rows:
        own = [row[f"m/{task}"] for task in tasks]
        np.testing.assert_allclose(own, expected[row["row_id"]], atol=TOLERANCE)


def test_scores_of_a_prepared_split_equal_the_evaluators(run, model_dir, folder):
    expected, tasks = evaluated(run, "test")
    rows = batch_scored(run, model_dir, folder / "split", split="test")
    assert {row["row_id"] for row in rows} == set(expected)
    assert_equal(rows, expected, tasks)
    spread = np.std([row[f"m/{tasks[0]}"] for row in rows])
    assert spread > 100 * TOLERANCE  # else any two constant models would agree


def test_scores_of_the_raw_log_equal_the_evaluators(run, model_dir, folder):
    by_split = [evaluated(run, split) for split in ("train", "validation", "test")]
    tasks = by_split[0][1]
    expected = {k: v for found, _ in by_split for k, v in found.items()}
    rows = batch_scored(run, model_dir, folder / "log", raw_dir=str(folder / "raw"))
    assert len(rows) == 2500
    assert {row["row_id"] for row in rows} == set(expected)
    assert_equal(rows, expected, tasks)
