"""A chain of days: its commands, its order, its memory; stages are stand-ins here."""

import json
import types

import pytest
import yaml

from features import processes
from features.config import ConfigError
from pipeline import chain as chain_lib
from pipeline import continual
from pipeline.chain import Chain, ChainError, Walk

DAY_1, DAY_2, DAY_3 = 20240131, 20240201, 20240202
SECONDS = {DAY_1: 1706659200, DAY_2: 1706745600, DAY_3: 1706832000}  # 00:00 UTC


def make(**changes):
    values = {
        "dataset": "planted_ecat",
        "raw_dir": "raw",
        "window_days": 2,
        "run": {"method": "ecat", "method_config": {"target_domain": "d1"}},
        "select": {"target_domains": ["d1"], "hops": 1, "require_seed": False},
        "export_dir": "export/m",
    }
    return Chain.parse({**values, **changes})


@pytest.fixture
def ran(monkeypatch, tmp_path):
    """Stages leave what they make; `ran.fail` is the stage that ends with 7."""
    log = types.SimpleNamespace(commands=[], fail=None, gate=False, refuse=())

    def run(command):
        arguments = command[1:]
        module = arguments[1]
        log.commands.append(arguments)
        if log.fail == module:
            return 7
        options = dict(a.split("=", 1) for a in arguments[2:] if "=" in a)
        if module == "models.train":
            folder = tmp_path / options["--workdir"]
            folder.mkdir()
            config = yaml.safe_load(open(options["--config"]))
            (folder / "config.json").write_text(json.dumps({"run": config}))
            metrics = {"mean_domain_auc": 0.7, "mean_logloss": 0.5}
            metrics["overall"] = [{"rows": 12}]
            result = {"metrics": {"test": metrics}}
            (folder / "result.json").write_text(json.dumps(result))
        elif module != "serving.export":
            folder = tmp_path / options["--data_dir"]
            if module == "pipeline.select_samples":
                folder = folder / "streams" / options["--name"]
            folder.mkdir(parents=True)
            (folder / "_SUCCESS").touch()
        refused = module == "serving.export" and (
            log.gate or options["--version"] in log.refuse
        )
        return 3 if refused else 0

    monkeypatch.setattr(processes, "run", run)
    return log


def modules(log):
    return [arguments[1].split(".")[-1] for arguments in log.commands]


def options(arguments):
    return dict(a.split("=", 1) for a in arguments if "=" in a)


def test_a_day_trains_on_itself_and_tests_on_the_next(ran, tmp_path):
    continual.walk_days(Walk(make(), tmp_path), DAY_1, DAY_1)
    assert modules(ran) == ["preprocess", "select_samples", "train", "export"]
    split = json.loads(ran.commands[0][-1].removeprefix("--set=split="))
    assert split == {
        "by": "temporal",
        "column": "time",
        "train_from": SECONDS[DAY_1] - 86_400,
        "validation_from": SECONDS[DAY_2],
        "test_from": SECONDS[DAY_2],
        "test_until": SECONDS[DAY_3],
    }
    config = yaml.safe_load((tmp_path / str(DAY_1) / "run.yaml").read_text())
    assert config["train_days"] == [DAY_1, DAY_1]
    assert (config["max_epochs"], config["patience"]) == (1, None)
    assert "init_from" not in config
    method_config = config["method_config"]
    assert method_config["gst_path"] == "streams/gst"
    assert method_config["gst_share"] == "auto"


def test_share_of_selected_rows_is_as_told(tmp_path):
    run = {"method": "ecat", "method_config": {"gst_share": 2.0}}
    config = Walk(make(run=run), tmp_path).run_config(DAY_1, DAY_1)
    assert config["method_config"]["gst_share"] == 2.0
    config = Walk(make(select=None), tmp_path).run_config(DAY_1, DAY_1)
    assert "gst_share" not in config["method_config"]


def test_no_edge_of_the_day_itself_chooses_its_rows(ran, tmp_path):
    continual.walk_days(Walk(make(), tmp_path), DAY_2, DAY_2)
    select = ran.commands[1]
    values = options(select)
    assert values["--cutoff_day"] == str(DAY_1)
    assert (values["--first_day"], values["--last_day"]) == (str(DAY_2), str(DAY_2))
    assert "--no-require_seed" in select
    assert select[select.index("--target_domains") + 1] == "d1"


def test_the_next_day_goes_on_from_the_last_one(ran, tmp_path):
    continual.walk_days(Walk(make(), tmp_path), DAY_1, DAY_2)
    later = [c for c in ran.commands if str(DAY_2) in " ".join(c)]
    before = tmp_path / str(DAY_1)
    first = options(ran.commands[4])
    assert first["--previous_data_dir"] == str(before / "data")
    config = yaml.safe_load((tmp_path / str(DAY_2) / "run.yaml").read_text())
    assert config["init_from"] == str(before / "run")
    export = options(later[-1])
    run = tmp_path / str(DAY_2) / "run"
    assert export["--gate_scores"] == str(run / "scores_test_before.npz")
    assert export["--version"] == str(DAY_2)


def test_finished_days_are_left_alone_and_missed_ones_caught_up(ran, tmp_path):
    walk = Walk(make(), tmp_path)
    first = continual.walk_days(walk, DAY_1, DAY_1)
    count = len(ran.commands)
    assert continual.walk_days(walk, DAY_1, DAY_1) == first
    assert len(ran.commands) == count
    days = continual.walk_days(walk, DAY_1, DAY_3)
    assert list(days) == [str(d) for d in (DAY_1, DAY_2, DAY_3)]
    assert len(ran.commands) == 3 * count


def test_a_failed_stage_keeps_what_is_done_and_goes_on_there(ran, tmp_path):
    ran.fail = "models.train"
    walk = Walk(make(), tmp_path)
    with pytest.raises(ChainError, match=r"stage train of 20240131.*got 7"):
        continual.walk_days(walk, DAY_1, DAY_1)
    assert walk.done() == []
    ran.fail = None
    continual.walk_days(walk, DAY_1, DAY_1)
    assert modules(ran)[3:] == ["train", "export"]


def test_a_chain_takes_the_data_sets_of_another(ran, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    with continual._claimed(make(), first):
        continual.walk_days(Walk(make(), first), DAY_1, DAY_2)
    ran.commands.clear()
    chain = make(data_from=str(first), select={"target_domains": ["d0"]})
    walk = Walk(chain, second)
    continual.walk_days(walk, DAY_2, DAY_2)
    assert modules(ran) == ["select_samples", "train", "export"]
    config = yaml.safe_load((second / str(DAY_2) / "run.yaml").read_text())
    assert config["data_dir"] == str(first / str(DAY_2) / "data")
    # Rows that were selected otherwise are not taken for its own.
    assert walk.stream not in ("gst", Walk(make(data_from=str(first)), second).stream)
    assert config["method_config"]["gst_path"] == f"streams/{walk.stream}"
    assert options(ran.commands[0])["--name"] == walk.stream
    with pytest.raises(ChainError, match=r"chain that has prepared 20240202; there is"):
        continual.walk_days(walk, DAY_2, DAY_3)


def test_a_chain_that_began_before_an_option_existed_goes_on(tmp_path):
    with continual._claimed(make(), tmp_path):
        pass
    path = tmp_path / "chain.json"
    old = json.loads(path.read_text())
    del old["data_from"]
    path.write_text(json.dumps(old))
    with continual._claimed(make(), tmp_path):
        pass
    with (
        pytest.raises(ChainError, match="differs in data_from"),
        continual._claimed(make(data_from="elsewhere"), tmp_path),
    ):
        pass


def test_data_of_a_chain_with_other_settings_is_refused(tmp_path):
    with continual._claimed(make(), tmp_path):
        pass
    with pytest.raises(ChainError, match=r"window_days must be that .* 2; got 3"):
        Walk(make(data_from=str(tmp_path), window_days=3), tmp_path / "other")
    with pytest.raises(ChainError, match="must be the workdir of a chain; there is no"):
        Walk(make(data_from=str(tmp_path / "nowhere")), tmp_path / "other")


def test_a_version_that_the_gate_refuses_does_not_end_the_chain(ran, tmp_path):
    ran.gate = True
    days = continual.walk_days(Walk(make(), tmp_path), DAY_1, DAY_2)
    assert [values["published"] for values in days.values()] == [False, False]
    assert "NOT published" in continual.to_text(days)
    assert modules(ran).count("export") == 2


def test_a_day_after_a_refused_one_is_compared_with_the_published_version(
    ran, tmp_path
):
    ran.refuse = (str(DAY_2),)
    walk = Walk(make(), tmp_path)
    continual.walk_days(walk, DAY_1, DAY_3)
    refused, after = (walk.folder(d) / "run.yaml" for d in (DAY_2, DAY_3))
    assert "compare_with" not in yaml.safe_load(refused.read_text())
    config = yaml.safe_load(after.read_text())
    assert config["init_from"] == str(tmp_path / str(DAY_2) / "run")
    assert config["compare_with"] == str(tmp_path / str(DAY_1) / "run")
    assert [walk.published(d) for d in (DAY_1, DAY_2, DAY_3)] == [DAY_1, DAY_1, DAY_3]


def test_a_walk_killed_after_publishing_does_not_publish_again(ran, tmp_path):
    walk = Walk(make(export_dir=str(tmp_path / "export")), tmp_path / "chain")
    (tmp_path / "export" / str(DAY_1)).mkdir(parents=True)
    days = continual.walk_days(walk, DAY_1, DAY_1)
    assert days[str(DAY_1)]["published"] is True
    assert "export" not in modules(ran)


def versions(folder, *days):
    for day in days:
        run = folder / str(day) / "run"
        run.mkdir(parents=True)
        (run / "result.json").touch()
    return str(folder)


@pytest.mark.parametrize(
    ("mode", "expected"), [("continual", DAY_2), ("one_time", 20240130)]
)
def test_source_is_pinned_to_a_version_before_the_day(ran, tmp_path, mode, expected):
    chain = versions(tmp_path / "source", 20240130, DAY_1, DAY_2, DAY_3)
    walk = Walk(make(source={"chain": chain, "mode": mode}), tmp_path / "target")
    found = walk.source_run(DAY_3, DAY_1)
    assert found.parent.name == str(expected)
    days = continual.walk_days(walk, DAY_1, DAY_1)
    assert days[str(DAY_1)]["source_version"] == "20240130"


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({}, [True, None]),
        ({"warm_start_from_source": False}, [False, False]),
        ({"warm_start_from_source": True}, [True, True]),
    ],
)
def test_first_day_starts_from_the_source_unless_told_otherwise(
    tmp_path, said, expected
):
    run = {"method": "ecat", "method_config": {"target_domain": "d1", **said}}
    source = {"chain": versions(tmp_path / "source", 20240130)}
    walk = Walk(make(run=run, source=source), tmp_path / "target")
    days = [walk.run_config(day, DAY_1)["method_config"] for day in (DAY_1, DAY_2)]
    assert [day.get("warm_start_from_source") for day in days] == expected
    alone = Walk(make(run=run), tmp_path / "alone").run_config(DAY_1, DAY_1)
    assert ("warm_start_from_source" in alone["method_config"]) == bool(said)


def test_a_source_that_comes_later_does_not_change_a_pinned_day(ran, tmp_path):
    chain = versions(tmp_path / "source", 20240129)
    walk = Walk(make(source={"chain": chain}), tmp_path / "target")
    pinned = walk.write_config(DAY_1, DAY_1).read_text()
    versions(tmp_path / "source", 20240130)
    assert walk.write_config(DAY_1, DAY_1).read_text() == pinned
    with pytest.raises(ChainError, match="finished run before 20240129"):
        walk.source_run(20240129, 20240129)


def test_a_chain_begins_with_one_day_only(ran, tmp_path):
    walk = Walk(make(), tmp_path)
    continual.walk_days(walk, DAY_2, DAY_2)
    with pytest.raises(ChainError, match="first_day must be 20240201"):
        walk.days(DAY_1, DAY_2)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"dataset": "movielens_1m"}, "must be split by time"),
        ({"run": {"method": "ecat", "data_dir": "x"}}, "leave to the chain: data_dir"),
        (
            {"select": {"target_domains": ["a"], "name": "x"}},
            "leave to the chain: name",
        ),
        ({"select": {"target_domain": ["a"]}}, "target_domains"),
    ],
)
def test_a_chain_that_cannot_be_is_refused(tmp_path, changes, expected):
    with pytest.raises(ConfigError, match=expected):
        Walk(make(**changes), tmp_path)


@pytest.mark.parametrize(("first", "last"), [(20240230, 20240301), (DAY_2, DAY_1)])
def test_impossible_days_are_an_error(tmp_path, first, last):
    with pytest.raises(ChainError, match="YYYYMMDD|must not be after"):
        Walk(make(), tmp_path).days(first, last)


def test_commands_are_printed_for_a_scheduler_and_nothing_runs(ran, tmp_path, capsys):
    path = tmp_path / "chain.yaml"
    path.write_text(yaml.safe_dump(make().model_dump(mode="json")))
    arguments = [f"--config={path}", f"--workdir={tmp_path / 'w'}"]
    arguments += [f"--first_day={DAY_1}", f"--last_day={DAY_2}"]
    assert continual.main([*arguments, "--print_commands"]) == 0
    printed = capsys.readouterr().out.strip().split("\n")
    assert len(printed) == 8
    assert all(line.startswith("python -m ") for line in printed)
    assert ran.commands == []
    assert continual.main([*arguments, "--set=window_days=5"]) == 1
    assert "differs in window_days" in capsys.readouterr().err


def test_a_day_in_its_own_column_is_not_moved_to_utc(tmp_path):
    walk = Walk(make(dataset="kuairand_pure"), tmp_path)
    preprocess = walk.commands(DAY_1, DAY_1)[0]
    split = json.loads(preprocess.arguments[-1].removeprefix("--set=split="))
    assert split["column"] == "date"
    assert (split["train_from"], split["test_until"]) == (20240130, DAY_3)
    assert chain_lib.day_after(20240228) == 20240229
