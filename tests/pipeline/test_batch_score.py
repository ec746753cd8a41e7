"""Batch scoring with models made by hand: every score is checked by arithmetic."""

import json
import shutil
import signal
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from features.dataset import Dataset
from pipeline import batch_score as command
from pipeline.errors import JobError, root_cause
from pipeline.jobs import batch_score
from pipeline.jobs.batch_score import ScoreOptions
from pipeline.publish import Staging
from pipeline.transforms import scoring
from tests.pipeline import job_data, score_models

ROWS = 240
HISTORY = 4


def make_log():
    """A log with a request id that no spec names; channel `shop` is no domain."""
    log = job_data.make_log(ROWS)
    price = np.round(np.arange(ROWS) % 100 / 10, 2)
    log = log.append_column("price", pa.array(price))
    log = log.append_column("like", pa.array(np.zeros(ROWS, np.int64)))
    return log.append_column("request", pa.array([f"r{i}" for i in range(ROWS)]))


def make_spec():
    return job_data.make_spec(
        domain={"by": "column", "column": "channel", "values": ["home", "video"]},
        tasks=[
            {"name": "click", "column": "click"},
            {"name": "like", "column": "like"},
        ],
        features=[
            {"kind": "categorical", "name": "item_id", "role": "item"},
            {
                "kind": "numeric",
                "name": "price",
                "role": "item",
                "transform": "none",
            },
            {
                "kind": "sequence",
                "name": "history",
                "of": "item_id",
                "max_length": HISTORY,
            },
            {"kind": "domain"},
        ],
        split={"by": "random", "validation": 0.2, "test": 0.3},
        max_rejected_share=0.3,
    )


@pytest.fixture(scope="module")
def log():
    return make_log()


@pytest.fixture(scope="module")
def raw(log, tmp_path_factory):
    return job_data.write_raw(tmp_path_factory.mktemp("raw"), log, files=3)


@pytest.fixture(scope="module")
def dataset(raw, tmp_path_factory):
    return job_data.run(raw, tmp_path_factory.mktemp("out") / "data", make_spec())


@pytest.fixture(scope="module")
def models(dataset, tmp_path_factory):
    """Model `a` serves both domains, its newest version is 12; `b` serves home."""
    folder = tmp_path_factory.mktemp("export")
    found = dataset.info.fingerprint
    score_models.write(folder / "a", found, version=3, factor=0.1)
    score_models.write(folder / "a", found, version=12)
    score_models.write(folder / "b", found, factor=0.5, domains=("home",))
    return {"a": str(folder / "a"), "b": str(folder / "b")}


def options(dataset, output_dir, models, **changes):
    values = {"num_shards": 2, "user_buckets": 3, **changes}
    return ScoreOptions(
        models=models,
        data_dir=str(dataset.data_dir),
        output_dir=str(output_dir),
        **values,
    )


@pytest.fixture(scope="module")
def scored(dataset, raw, models, tmp_path_factory):
    """Raw logs scored by both models, by the command line."""
    output = tmp_path_factory.mktemp("scores") / "out"
    flags = ["--data_dir", str(dataset.data_dir), "--output_dir", str(output)]
    flags += [f for item in models.items() for f in ("--model", "=".join(item))]
    flags += ["--raw_dir", str(raw), "--num_shards", "2"]
    flags += ["--keys", "user_id", "request", "time"]
    assert command.main(flags) == 0
    return output


def read_scores(folder):
    return pa.concat_tables(
        [pq.read_table(path) for path in sorted((folder / "scores").iterdir())]
    )


def by_request(table):
    return {row["request"]: row for row in table.to_pylist()}


def expected_history_lengths(log):
    """Earlier rows of the same user that are in a domain, by request, at most four."""
    rows = [r for r in log.to_pylist() if r["channel"] != "shop"]
    return {
        row["request"]: min(
            HISTORY,
            sum(
                r["user_id"] == row["user_id"] and r["time"] < row["time"] for r in rows
            ),
        )
        for row in rows
    }


def test_raw_rows_get_the_score_of_their_own_values(scored, log):
    found = by_request(read_scores(scored))
    lengths = expected_history_lengths(log)
    assert set(found) == set(lengths)
    for row in log.to_pylist():
        if row["channel"] == "shop":
            continue
        scores = found[row["request"]]
        assert scores["a/click"] == pytest.approx(row["price"] / 10, abs=1e-6)
        assert scores["a/like"] == pytest.approx(lengths[row["request"]] / 10, abs=1e-6)


def test_keys_pass_through_as_they_came(scored, log):
    found = by_request(read_scores(scored))
    for row in log.to_pylist():
        if row["request"] in found:
            scores = found[row["request"]]
            assert scores["user_id"] == row["user_id"]
            assert scores["time"] == row["time"]
            assert scores["domain"] == row["channel"]
    assert len(found) == sum(c != "shop" for c in log["channel"].to_pylist())


def test_two_models_score_in_one_pass_null_where_one_does_not_serve(scored):
    for row in read_scores(scored).to_pylist():
        if row["domain"] == "home":
            assert row["b/click"] == pytest.approx(row["a/click"] / 2, abs=1e-6)
        else:
            assert row["b/click"] is None
            assert row["b/like"] is None


def test_every_row_carries_the_newest_model_version(scored):
    table = read_scores(scored)
    assert set(table["a/version"].to_pylist()) == {12}
    assert set(table["b/version"].to_pylist()) == {1}
    about = json.loads(table.schema.metadata[b"isthmus.models"])
    assert about == [{"name": "a", "version": 12}, {"name": "b", "version": 1}]


def test_histogram_counts_add_up_per_model_task_and_domain(scored, log):
    values = json.loads((scored / "histograms.json").read_text())
    assert len(values["edges"]) == 21
    channels = np.array(log["channel"].to_pylist())
    price = np.array(log["price"].to_pylist())
    for domain in ("home", "video"):
        cell = values["models"]["a"]["click"][domain]
        own = price[channels == domain]
        assert sum(cell["counts"]) == cell["rows"] == len(own)
        assert cell["mean"] == pytest.approx(own.mean() / 10, abs=1e-5)
    # Scores of 0.90 to 0.99 lie in the last two of twenty bins: prices from 9.0 on.
    home = values["models"]["a"]["click"]["home"]["counts"]
    assert sum(home[18:]) == ((channels == "home") & (price >= 9)).sum()
    assert list(values["models"]["b"]["click"]) == ["home"]


def test_unknown_domains_are_rejected_with_reason_and_row(scored, log):
    rejected = [
        json.loads(line)
        for line in (scored / "rejected/rows.jsonl").read_text().splitlines()
    ]
    shop = [r["request"] for r in log.to_pylist() if r["channel"] == "shop"]
    assert {r["reason"] for r in rejected} == {"channel must be a value of a domain"}
    assert len(rejected) == len(shop)
    summary = json.loads((scored / "scores.json").read_text())
    assert summary["rejected"] == {"channel must be a value of a domain": len(shop)}
    assert summary["rows"] == ROWS - len(shop)
    assert (scored / "_SUCCESS").exists()


def test_prepared_split_is_scored_to_tfrecords(dataset, models, tmp_path):
    import tensorflow as tf

    made = batch_score.run(
        options(
            dataset, tmp_path / "out", models, split="test", output_format="tfrecord"
        )
    )
    rows = []
    for path in sorted((tmp_path / "out/scores").iterdir()):
        assert path.suffix == ".tfrecord"
        for record in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
            features = tf.train.Example.FromString(record).features.feature
            rows.append(
                {
                    name: list(getattr(value, value.WhichOneof("kind") or "x").value)
                    for name, value in features.items()
                    if value.WhichOneof("kind")
                }
            )
    table = job_data.read_rows(dataset, "test").to_pylist()
    encoded = {row["row_id"][0]: row for row in table}
    assert made["rows"] == len(rows) == len(encoded)
    for row in rows:
        own = encoded[row["row_id"][0]]
        assert row["a/click"] == pytest.approx([own["price"][0] / 10], abs=1e-6)
        length = sum(i > 0 for i in own["history"])
        assert row["a/like"] == pytest.approx([length / 10], abs=1e-6)
        assert row["a/version"] == [12]
        is_home = row["domain"] == [b"home"]
        assert len(row.get("b/click", [])) == is_home


def test_scores_do_not_depend_on_input_files_or_buckets(
    dataset, log, models, scored, tmp_path
):
    raw = job_data.write_raw(tmp_path / "raw", log, files=2, order=[1, 0])
    made = options(
        dataset,
        tmp_path / "out",
        models,
        raw_dir=str(raw),
        keys=("user_id", "request", "time"),
        user_buckets=1,
    )
    batch_score.run(made)
    assert read_scores(tmp_path / "out").equals(read_scores(scored))
    first, second = (f / "histograms.json" for f in (scored, tmp_path / "out"))
    assert first.read_bytes() == second.read_bytes()


def test_ready_histories_and_logs_without_labels_are_scored(dataset, models, tmp_path):
    folder = tmp_path / "today"
    folder.mkdir()
    rows = pa.table(
        {
            "user_id": ["u1", "new user"],
            "item_id": [3, 10_000],  # the second was never seen
            "time": [job_data.FIRST_SECOND + 10**6] * 2,
            "channel": ["home", "video"],
            "price": [2.5, None],
            "history": [[1, 2, 3], []],
        }
    )
    pq.write_table(rows, folder / "new.parquet")
    job_data.write_raw(folder, make_log())  # side tables; the log itself is not read
    batch_score.run(
        options(
            dataset,
            tmp_path / "out",
            {"a": models["a"]},
            raw_dir=str(folder),
            source_path="new.parquet",
            histories="column",
        )
    )
    found = {r["user_id"]: r for r in read_scores(tmp_path / "out").to_pylist()}
    assert found["u1"]["a/click"] == pytest.approx(0.25)
    assert found["u1"]["a/like"] == pytest.approx(0.3)
    assert found["new user"]["item_id"] == "10000"
    assert found["new user"]["a/like"] == 0
    assert np.isnan(found["new user"]["a/click"])  # so the hand-made model says


# --------------------------------------------------------------------- errors


def test_too_many_rejected_rows_publish_nothing(dataset, raw, models, tmp_path):
    made = options(
        dataset, tmp_path / "out", models, raw_dir=str(raw), max_rejected_share=0.0
    )
    with pytest.raises(JobError, match=r"at most a share of 0; got .* of 240 \("):
        batch_score.run(made)
    assert list(tmp_path.iterdir()) == []


def test_model_of_another_data_set_is_refused(dataset, tmp_path):
    base = score_models.write(tmp_path / "x", "0123456789abcdef")
    made = options(dataset, tmp_path / "out", {"x": str(base)})
    with pytest.raises(JobError, match=r"model 'x' must have been trained on.*--no-ch"):
        batch_score.run(made)


def test_folder_without_a_model_is_named(dataset, tmp_path):
    with pytest.raises(JobError, match=r"model 'x' must be an exported version folder"):
        scoring.ExportedModel.open("x", str(tmp_path / "nowhere"))


def test_unreadable_metadata_are_named(tmp_path):
    base = score_models.write(tmp_path / "x", "0")
    path = base / "1/assets.extra/isthmus.json"
    path.write_text(path.read_text()[:-9])
    with pytest.raises(JobError, match=r"readable assets\.extra/isthmus\.json.*again"):
        scoring.ExportedModel.open("x", str(base))


def test_models_that_disagree_on_an_input_are_refused(tmp_path):
    changed = {"price": {"kind": "id"}}
    bases = [
        score_models.write(tmp_path / "x", "0"),
        score_models.write(tmp_path / "y", "0", inputs=changed),
    ]
    opened = [scoring.ExportedModel.open(b.name, str(b)) for b in bases]
    with pytest.raises(JobError, match="input 'price' must be of one kind"):
        scoring.raw_inputs(opened)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--model", "a"], "--model must be written NAME=PATH"),
        (["--model", "a=x", "--model", "a=y"], "'a' stands twice"),
        (["--model", "a=x", "--splt=test"], "--splt"),
        (["--model", "a=x", "--source_path", "*.csv"], "source_path needs raw_dir"),
        (["--model", "a=x", "--num_shards", "0"], "num_shards"),
        (["--model", "a=nowhere"], "must be an exported version folder"),
    ],
)
def test_command_line_names_the_bad_flag(dataset, flags, message, tmp_path, capsys):
    where = ["--data_dir", str(dataset.data_dir), "--output_dir", str(tmp_path / "o")]
    assert command.main([*where, *flags]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert list(tmp_path.iterdir()) == []


def test_unknown_key_is_named_with_the_nearest(dataset, models, raw, tmp_path):
    made = options(dataset, tmp_path / "out", models, keys=("itm_id",))
    with pytest.raises(JobError, match=r"keys must be.*Did you mean 'item_id'"):
        batch_score.run(made)


def test_corrupt_record_file_is_named(dataset, models, tmp_path, capsys):
    shutil.copytree(dataset.data_dir, tmp_path / "data")
    copy = Dataset.open(tmp_path / "data")
    path = copy.files("test")[0]
    path.write_bytes(path.read_bytes()[:-5])
    flags = ["--data_dir", str(copy.data_dir), "--output_dir", str(tmp_path / "out")]
    assert command.main([*flags, "--model", f"a={models['a']}"]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"batch_score failed: {path}: record 0 at byte 0")
    assert "truncated" in error
    assert "while running" not in error
    assert sorted(p.name for p in tmp_path.iterdir()) == ["data"]


def test_full_disk_leaves_the_old_scores(dataset, models, tmp_path, monkeypatch):
    def full(table, path, *_, **__):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device", str(path))

    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").touch()
    monkeypatch.setattr(batch_score.pq, "write_table", full)
    with pytest.raises(Exception, match="No space left") as caught:
        batch_score.run(options(dataset, tmp_path / "out", models, overwrite=True))
    assert "disk with room left" in root_cause(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["old"]


@pytest.mark.slow
def test_killed_job_leaves_no_half_folder(dataset, models, tmp_path):
    code = (
        "import sys, time\n"
        "from pipeline.jobs import batch_score\n"
        "def stuck(table, path):\n"
        "    path.write_bytes(b'half')\n"
        "    print('writing', flush=True)\n"
        "    time.sleep(60)\n"
        "batch_score.pq.write_table = stuck\n"
        "batch_score.run(batch_score.ScoreOptions(models={'a': sys.argv[1]},\n"
        "    data_dir=sys.argv[2], output_dir=sys.argv[3]))\n"
    )
    target = tmp_path / "out"
    arguments = [models["a"], str(dataset.data_dir), str(target)]
    with subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as killed:
        assert killed.stdout.readline() == b"writing\n"
        killed.send_signal(signal.SIGKILL)
    assert not target.exists()
    with Staging(target):
        pass  # the next job with this target cleans up
    assert list(tmp_path.iterdir()) == []
