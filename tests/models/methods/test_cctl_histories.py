"""CCTL on joined histories: from a raw log to the sequence term of REN."""

import models  # noqa: F401 - chooses Keras 2, so it comes first

import pytest  # isort: skip

from models.method import MAIN  # isort: skip
from models.methods.cctl import SOURCE  # isort: skip
from models.training import restore, streams, trainer  # isort: skip
from tests.models.training import fakes  # isort: skip
from tests.pipeline import job_data  # isort: skip

HISTORY = {"kind": "sequence", "of": "item_id", "max_length": 3}
FEATURES = [
    {"kind": "categorical", "name": "user_id", "role": "user"},
    {"kind": "categorical", "name": "item_id", "role": "item"},
    {"kind": "sequence", "name": "in_video", "domains": ["video"]},
    {"kind": "sequence", "name": "in_home", "domains": ["home"]},
]


@pytest.fixture(scope="module")
def log():
    return job_data.make_log(300)


@pytest.fixture(scope="module")
def dataset(log, tmp_path_factory):
    folder = tmp_path_factory.mktemp("joined")
    spec = job_data.make_spec(
        features=[{**HISTORY, **f} if "domains" in f else f for f in FEATURES]
    )
    # Domains of a top_k rule have no names before the rows are counted.
    return job_data.run(job_data.write_raw(folder / "raw", log), folder / "data", spec)


def test_prepared_row_holds_what_its_user_did_before_in_each_domain(dataset, log):
    rows = [r | {"item_id": str(r["item_id"])} for r in log.to_pylist()]
    expected = set()
    for row in rows:
        lists = []
        for domain in ("video", "home"):
            earlier = sorted(
                (r["time"], r["item_id"])
                for r in rows
                if r["user_id"] == row["user_id"]
                and r["channel"] == domain
                and r["time"] < row["time"]
            )
            lists.append(tuple(item for _, item in earlier[-3:]))
        expected.add((row["user_id"], row["item_id"], *lists))
    vocabs = dataset.info.fitted.vocabs
    users, items = (["", "?", *vocabs[n].values] for n in ("user_id", "item_id"))
    seen = set()
    for row in job_data.read_rows(dataset, "train").to_pylist():
        lists = [tuple(items[i] for i in row[n] if i) for n in ("in_video", "in_home")]
        seen.add((users[row["user_id"][0]], items[row["item_id"][0]], *lists))
    assert seen <= expected
    assert any(video and home for *_, video, home in seen)


def batches(method, dataset):
    """All training rows of both streams, a batch each."""
    return {
        name: next(
            iter(
                streams.read_domains(
                    dataset,
                    run_domains=method.schema.domains,
                    domains=stream.domains,
                    split="train",
                    tasks=method.schema.tasks,
                    batch_size=300,
                )
            )
        )
        for name, stream in method.streams().items()
    }


def test_run_from_files_pulls_the_two_histories_of_a_user_together(dataset, tmp_path):
    config = fakes.config(
        dataset.data_dir,
        method="cctl",
        batch_size=16,
        max_steps=20,
        metric="auc/video/click",
        eval_every="20 steps",
        method_config={
            "target_domain": "video",
            "source_domains": ("home",),
            "hidden_units": (4,),
            "selector_units": (4,),
            "ren_sequences": {"target": "in_video", "source": "in_home"},
            "ren_weight": 3.0,
        },
    )
    trainer.train(config, tmp_path)
    before = trainer.make_method(config, dataset)
    after = restore.load_method(tmp_path).method
    given = batches(after, dataset)
    assert set(given) == {MAIN, SOURCE}
    # Minus the mean cosine of the pairs.
    assert 0 < abs(float(before.loss(given)[1]["loss_ren_sequences"])) < 0.2
    logged = {name: float(value) for name, value in after.loss(given)[1].items()}
    assert -1 <= logged["loss_ren_sequences"] < -0.5
    assert logged["loss_ren_ids"] > 0
    assert logged["loss_ren"] == pytest.approx(
        logged["loss_ren_ids"] + logged["loss_ren_sequences"]
    )
