"""Anomalies in words: schema, skew, drift, domains; statistics made without Beam."""

import contextlib
import io
import json

import numpy as np
import pyarrow as pa
import pytest

from pipeline import preprocess, quiet, validation
from pipeline.errors import JobError
from pipeline.transforms import statistics
from pipeline.validation import schema as schema_lib
from tests.pipeline import job_data

ROWS = 1000
DOMAINS = ("home", "shop")
SPEC = job_data.make_spec()


def rows(*, b_share=0.5, price=0.0, value="b", labels=True, size=ROWS, domain=None):
    """Rows with a category (a or `value`), a number and a label."""
    rng = np.random.default_rng(0)
    is_b = np.arange(size) < b_share * size
    columns = {
        "device": pa.array(np.where(is_b, value, "a")),
        "price": pa.array((rng.normal(size=size) + price).astype("f8")),
        "domain": pa.array(
            np.arange(size) % 2 if domain is None else np.full(size, domain), pa.int32()
        ),
        "day": pa.array(np.full(size, 20240101), pa.int32()),
    }
    if labels:
        columns["label/click"] = pa.array(np.arange(size) % 2, pa.int8())
    return pa.RecordBatch.from_arrays(list(columns.values()), list(columns))


def stats_of(**slices):
    """Statistics list of one split; keys are slice names, `all` holds every row."""
    from tensorflow_data_validation import StatsOptions
    from tensorflow_data_validation.statistics import stats_impl
    from tensorflow_metadata.proto.v0 import statistics_pb2

    result = statistics_pb2.DatasetFeatureStatisticsList()
    for name, batch in slices.items():
        table = pa.Table.from_batches([statistics.to_lists(batch)])
        made = stats_impl.generate_statistics_in_memory(
            table.to_batches()[0], StatsOptions()
        )
        data = made.datasets[0]
        data.name = "All Examples" if name == "all" else name
        result.datasets.append(data)
    return result


@pytest.fixture
def folder(tmp_path):
    """Makes a data folder with the statistics of the given splits."""

    def make(name="data", **splits):
        (tmp_path / name / "stats").mkdir(parents=True)
        for split, made in splits.items():
            path = tmp_path / name / "stats" / f"{split}.pb"
            path.write_bytes(made.SerializeToString())
        return tmp_path / name

    return make


def validate(data_dir, **options):
    return validation.validate(data_dir, SPEC, DOMAINS, **options)


def places(report):
    return {(a.split, a.place, a.feature) for a in report.anomalies}


def test_equal_splits_have_no_anomalies(folder):
    same = stats_of(all=rows(), domain_0=rows(domain=0))
    data = folder(train=same, validation=same, test=same)
    report = validate(data)
    assert not report.has_errors
    assert (data / "anomalies/report.txt").read_text() == "no anomalies\n"
    assert json.loads((data / "anomalies/report.json").read_text()) == []


def test_new_value_is_told_in_words_with_split_column_and_value(folder):
    data = folder(
        train=stats_of(all=rows()),
        validation=stats_of(all=rows(b_share=0.1, value="tablet")),
    )
    report = validate(data)
    text = (data / "anomalies/report.txt").read_text()
    assert "validation, all rows: column 'device': Unexpected string values" in text
    assert "tablet" in text
    assert report.to_text() + "\n" == text
    assert validation.AnomalyReport.load(data) == report


def test_few_new_values_are_normal(folder):
    data = folder(
        train=stats_of(all=rows()),
        validation=stats_of(all=rows(b_share=0.04, value="tablet")),
    )
    found = validate(data).anomalies
    assert not [a for a in found if a.place == validation.ALL_ROWS]


def test_anomaly_of_one_domain_names_the_domain(folder):
    data = folder(
        train=stats_of(all=rows()),
        validation=stats_of(
            all=rows(),
            domain_0=rows(domain=0),
            domain_1=rows(domain=1, b_share=0.2, value="tablet"),
        ),
    )
    assert places(validate(data)) == {("validation", "shop", "device")}


def test_category_shares_that_differ_from_training_are_skew(folder):
    data = folder(
        train=stats_of(all=rows(b_share=0.5)),
        validation=stats_of(all=rows(b_share=0.75)),
        test=stats_of(all=rows(b_share=0.6)),  # 0.1 apart: below the threshold of 0.2
    )
    report = validate(data)
    assert places(report) == {("validation", "against training rows", "device")}
    assert "shares of the values differ" in report.to_text()
    assert "0.25" in report.to_text()


def test_numbers_of_another_shape_are_skew(folder):
    data = folder(train=stats_of(all=rows()), validation=stats_of(all=rows(price=5.0)))
    report = validate(data)
    assert places(report) == {("validation", "against training rows", "price")}
    assert "Jensen-Shannon" in report.to_text()


def test_drift_is_against_the_data_set_of_the_day_before(folder):
    before = folder("before", train=stats_of(all=rows(b_share=0.5)))
    validate(before)
    after = folder("after", train=stats_of(all=rows(b_share=0.9)))
    report = validate(after, previous_data_dir=str(before))
    assert places(report) == {("train", f"against {before}", "device")}
    assert "0.4" in report.to_text()
    again = folder("again", train=stats_of(all=rows(b_share=0.55)))
    assert not validate(again, previous_data_dir=str(before)).has_errors


def test_each_day_is_compared_with_the_one_before_across_splits(folder):
    data = folder(
        train=stats_of(
            all=rows(),
            day_20240101=rows(b_share=0.3),
            day_20240102=rows(b_share=0.6),
            day_20240103=rows(b_share=0.6),
        ),
        validation=stats_of(all=rows(), day_20240104=rows(b_share=0.1)),
    )
    found = places(validate(data))
    assert found == {
        ("train", "day 20240102 against day 20240101", "device"),
        ("validation", "day 20240104 against day 20240103", "device"),
    }


def test_labels_are_of_the_training_environment_only(folder):
    tfdv = quiet.tfdv()
    data = folder(train=stats_of(all=rows()))
    validate(data)
    schema = tfdv.load_schema_text(str(data / "schema.pbtxt"))
    assert list(schema.default_environment) == ["TRAINING", "SERVING"]
    unlabelled = stats_of(all=rows(labels=False))
    found = {
        environment: set(
            tfdv.validate_statistics(
                unlabelled, schema, environment=environment
            ).anomaly_info
        )
        for environment in ("TRAINING", "SERVING")
    }
    assert found == {"TRAINING": {"label/click"}, "SERVING": set()}


def test_curated_schema_is_used_as_it_is(folder, tmp_path):
    data = folder(
        train=stats_of(all=rows()),
        validation=stats_of(all=rows(b_share=0.1, value="tablet")),
    )
    first = validate(data)
    curated = tmp_path / "curated.pbtxt"
    text = (data / "schema.pbtxt").read_text()
    text = text.replace('value: "b"', 'value: "b"\n  value: "tablet"')
    curated.write_text(text.replace("threshold: 0.2", "threshold: 0.9"))
    assert first.has_errors
    assert not validate(data, schema_path=str(curated)).has_errors
    assert '"tablet"' in (data / "schema.pbtxt").read_text()


def test_schema_of_the_previous_data_set_is_reused_not_inferred(folder):
    before = folder("before", train=stats_of(all=rows()))
    validate(before)
    after = folder("after", train=stats_of(all=rows(value="tablet")))
    report = validate(after, previous_data_dir=str(before))
    assert (after / "schema.pbtxt").read_text() == (before / "schema.pbtxt").read_text()
    assert ("train", "all rows", "device") in places(report)


def test_previous_data_set_without_statistics_lets_a_schema_be_inferred(folder):
    before = folder("before")
    after = folder("after", train=stats_of(all=rows()))
    assert not validate(after, previous_data_dir=str(before)).has_errors
    assert (after / "schema.pbtxt").exists()


@pytest.mark.parametrize("text", [None, "feature { nme: 'x' }"])
def test_unreadable_schema_is_named(folder, tmp_path, text):
    data = folder(train=stats_of(all=rows()))
    path = tmp_path / "mine.pbtxt"
    if text is not None:
        path.write_text(text)
    with pytest.raises(JobError, match=r"schema must have a readable.*mine\.pbtxt"):
        validate(data, schema_path=str(path))


def test_identifiers_get_no_value_list(folder):
    names = pa.array([f"u{i}" for i in range(ROWS)])
    batch = pa.RecordBatch.from_arrays([names], ["user_id"])
    schema = schema_lib.infer(stats_of(all=batch), SPEC)
    assert not schema.feature[0].HasField("domain")
    assert not schema.string_domain


def test_long_tailed_numbers_are_not_compared_by_shape():
    features = [
        {"kind": "numeric", "name": "price", "role": "item", "transform": "log"}
    ]
    spec = job_data.make_spec(features=features)
    for used, is_compared in ((SPEC, True), (spec, False)):
        schema = schema_lib.infer(stats_of(all=rows()), used)
        (price,) = (f for f in schema.feature if f.name == "price")
        assert price.HasField("skew_comparator") == is_compared


def test_report_shows_the_first_findings_and_counts_the_rest():
    found = [validation.Anomaly("train", "all rows", f"c{i}", "r", "t") for i in "abc"]
    text = validation.AnomalyReport(tuple(found)).to_text(limit=2)
    assert text.splitlines()[2] == "and 1 more"


# ---------------------------------------------------------------- in the job

DAY_SECS = 86_400


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    """A log whose last two days come from a device that training never saw."""
    log = job_data.make_log(300)
    late = np.array(log["time"]) >= job_data.FIRST_SECOND + 3 * DAY_SECS
    log = log.append_column("device", pa.array(np.where(late, "tablet", "phone")))
    folder = job_data.write_raw(tmp_path_factory.mktemp("raw"), log)
    start = job_data.FIRST_SECOND
    spec = job_data.make_spec(
        features=[
            {"kind": "categorical", "name": "device", "role": "context"},
            {"kind": "categorical", "name": "item_id", "role": "item"},
            {"kind": "domain"},
        ],
        split={
            "by": "temporal",
            "validation_from": start + 3 * DAY_SECS,
            "test_from": start + 4 * DAY_SECS,
        },
    )
    (folder / "spec.yaml").write_text(spec.to_json())
    return folder


def cli(raw, data_dir, *flags):
    return preprocess.main(
        [
            *("--dataset", str(raw / "spec.yaml"), "--raw_dir", str(raw)),
            *("--data_dir", str(data_dir), *flags),
        ]
    )


@pytest.fixture(scope="module")
def prepared(raw, tmp_path_factory):
    data_dir = tmp_path_factory.mktemp("out") / "data"
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        assert cli(raw, data_dir, "--statistics_by_day") == 0
    (data_dir.parent / "printed").write_text(out.getvalue())
    return data_dir


def test_job_writes_statistics_of_every_split_domain_and_day(prepared):
    info = json.loads((prepared / "dataset.json").read_text())
    stats = validation._split_statistics(prepared)
    for split, made in stats.items():
        sizes = {data.name: data.num_examples for data in made.datasets}
        cells = [info["counts"][split][name] for name in info["fitted"]["domains"]]
        for index, cell in enumerate(cells):
            assert sizes[f"domain_{index}"] == cell["rows"]
        total = sum(cell["rows"] for cell in cells)
        assert sizes["All Examples"] == total
        days = [n for name, n in sizes.items() if name.startswith("day_")]
        assert sum(days) == total
    assert sorted(stats) == ["test", "train", "validation"]


def test_job_reports_the_anomaly_and_publishes_without_the_gate(prepared):
    report = validation.AnomalyReport.load(prepared)
    found = places(report)
    assert ("validation", "all rows", "device") in found
    assert ("validation", "home", "device") in found
    day = "day 20240104 against day 20240103"
    assert ("validation", day, "device") in found
    assert not [a for a in report.anomalies if a.split == "train"]
    printed = (prepared.parent / "printed").read_text()
    assert f"anomalies: {len(report.anomalies)}, all in {prepared}" in printed
    assert "validation, all rows: column 'device': Unexpected string" in printed


def test_gate_checks_a_curated_schema_and_publishes_nothing(
    raw, prepared, tmp_path, capsys
):
    text = (prepared / "schema.pbtxt").read_text()
    assert 'value: "phone"' in text
    # Allows what was found before; forbids a channel that the log has.
    text = text.replace('value: "phone"', 'value: "phone"\n  value: "tablet"')
    text = text.replace("threshold: 0.2", "threshold: 1.1")
    (tmp_path / "curated.pbtxt").write_text(text.replace('"home"', '"gone"'))
    flags = ("--fail_on_anomalies", "--schema", str(tmp_path / "curated.pbtxt"))
    assert cli(raw, tmp_path / "data", *flags) == 1
    error = capsys.readouterr().err
    assert "statistics must have no anomalies (--fail_on_anomalies)" in error
    assert "train, all rows: column 'channel': Unexpected string values" in error
    assert "'device'" not in error
    assert "Traceback" not in error
    assert [p.name for p in tmp_path.iterdir()] == ["curated.pbtxt"]


def test_sample_is_a_share_of_rows_and_the_same_for_any_batching():
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 2**62, 4000)
    batch = pa.RecordBatch.from_arrays([pa.array(ids), pa.array(ids)], ["row_id", "x"])

    def sample(parts):
        step = statistics._ToLists(0, 0.25, seed=7)
        found = [b for p in parts for b in step.process((0, p))]
        found += [v.value for v in step.finish_bundle()]
        return sorted(x for b in found for (x,) in b["x"].to_pylist())

    whole = sample([batch])
    assert whole == sample([batch.slice(i * 40, 40) for i in range(100)])
    assert set(whole) < set(ids.tolist())
    assert len(whole) == pytest.approx(1000, abs=4 * (4000 * 0.25 * 0.75) ** 0.5)


def test_options_refuse_days_without_a_time(raw, tmp_path, capsys):
    flags = ("--set", "keys.time=null", "--statistics_by_day")
    flags += ("--set", "split={by: random}")
    assert cli(raw, tmp_path / "data", *flags) == 1
    assert "statistics_by_day needs keys.day" in capsys.readouterr().err
