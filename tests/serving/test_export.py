"""One real export, and what stops one. Parity's fresh process runs in it once."""

import json
import pathlib
import re
import shutil

import numpy as np
import pytest
import tensorflow as tf

from models.training.restore import LoadedRun
from serving import client, gate, parity, publish, signatures
from serving import export as export_lib


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tmp_path_factory.mktemp("published") / "ranker"


@pytest.fixture(scope="module")
def exported(base, method, dataset):
    return export_lib.export(method, dataset, base, version=5)


@pytest.fixture
def no_parity(monkeypatch):
    """Leaves out the fresh process, which `exported` has run."""
    result = parity.Parity(1, 0.0, 0.0)
    monkeypatch.setattr(parity, "check_parity", lambda *_, **__: result)


def names(folder):
    return sorted(p.name for p in folder.iterdir())


def test_export_writes_the_version_folder_with_all_that_serving_needs(exported, base):
    assert exported.path == base / "5"
    assert names(base) == ["5"]
    assert names(exported.path / "assets.extra") == [
        "gate_scores.npz",
        "isthmus.json",
        "rows.json",
        "tf_serving_warmup_requests",
    ]
    vocabularies = [p.read_text().split("\n")[0] for p in assets(exported.path)]
    assert sorted(vocabularies) == ["g0", "i0", "u0"]


def test_exported_rows_are_what_the_client_reads_as_the_first_raw_rows(
    exported, arrays
):
    text = (exported.path / "assets.extra" / "rows.json").read_text("utf-8")
    read = client.columns(json.loads(text))
    assert read.keys() == arrays.keys()
    for name, values in read.items():
        width = values.shape[1:]  # of a list: no wider than the longest of these rows
        np.testing.assert_array_equal(values, arrays[name][:3, *map(slice, width)])


def assets(folder):
    return [p for p in (folder / "assets").iterdir() if p.is_file()]


def test_export_states_parity_in_both_loaders_on_all_sampled_rows(exported):
    assert exported.parity.rows == 100
    assert 0 <= exported.parity.max_difference < 1e-6
    assert 0 <= exported.parity.max_difference_tf1 < 1e-6


def test_export_counts_its_parameters_and_bytes(exported, method):
    assert exported.num_parameters == sum(
        int(np.prod(v.shape)) for v in method.model.variables
    )
    on_disk = sum(p.stat().st_size for p in exported.path.rglob("*") if p.is_file())
    assert exported.size_bytes == on_disk


def test_export_metadata_says_what_the_model_is(exported, dataset):
    path = exported.path / "assets.extra" / "isthmus.json"
    values = json.loads(path.read_text())
    assert values["version"] == 5
    assert values["name"] == "ranker"
    assert values["fingerprint"] == dataset.info.fingerprint
    assert values["domains"] == ["d0", "d1", "d2"]
    assert values["tasks"] == ["task0", "task1"]
    assert values["inputs"]["price"] == {
        "dtype": "float32",
        "kind": "number",
        "per_item": True,
    }
    assert values["parity"]["rows"] == 100
    assert values["gate"]["compared_with"] is None


def test_saved_variables_are_those_of_the_allow_list(exported, method):
    reader = tf.train.load_checkpoint(str(exported.path / "variables" / "variables"))
    shapes = [
        tuple(shape)
        for key, shape in reader.get_variable_to_shape_map().items()
        if key.endswith("VARIABLE_VALUE")
    ]
    assert sorted(shapes) == sorted(tuple(v.shape) for v in method.model.variables)
    assert not [k for k in reader.get_variable_to_shape_map() if "optimizer" in k]


class Extra(tf.Module):
    def __init__(self, variables, *more):
        super().__init__()
        self.listed = list(variables) + list(more)


def test_variable_too_many_in_the_file_is_refused(method, tmp_path):
    """A training-only variable, such as an Adam slot, of a shape of its own."""
    slot = tf.Variable(tf.zeros([3, 5]))
    tf.saved_model.save(Extra(method.serving_variables(), slot), str(tmp_path / "1"))
    with pytest.raises(export_lib.ExportError, match=r"too many.*\(3, 5\).*float32"):
        export_lib.assert_only_serving_variables(tmp_path / "1", method)


def test_variable_missing_in_the_file_is_refused(method, tmp_path):
    listed = method.serving_variables()
    tf.saved_model.save(Extra(listed[1:]), str(tmp_path / "1"))
    shape = re.escape(str(tuple(listed[0].shape)))
    with pytest.raises(export_lib.ExportError, match=f"missing.*{shape}"):
        export_lib.assert_only_serving_variables(tmp_path / "1", method)


def test_model_that_reads_more_than_its_allow_list_is_not_published(
    exported, make_method, dataset, base, monkeypatch
):
    leaky = make_method()
    listed = leaky.serving_variables()
    monkeypatch.setattr(leaky, "serving_variables", lambda: listed[:-1])
    with pytest.raises(signatures.VariableError, match="serving_variables must"):
        export_lib.export(leaky, dataset, base)
    assert names(base) == ["5"]


@pytest.mark.usefixtures("no_parity")
def test_same_model_again_passes_the_gate_and_old_versions_go(
    exported, method, dataset, base, tmp_path
):
    shutil.copytree(base, tmp_path / "m")
    second = export_lib.export(method, dataset, tmp_path / "m", keep=1)
    assert second.version > exported.version
    assert second.gate.compared_with == exported.version
    assert set(second.gate.differences.values()) == {0.0}
    assert names(tmp_path / "m") == [str(second.version)]


@pytest.mark.usefixtures("no_parity", "exported")
def test_model_that_fell_is_not_published_and_the_old_version_stays(
    method, dataset, base, monkeypatch
):
    def fallen(*arguments):
        scores = gate.score(*arguments)
        right = (2 * scores.labels - 1).astype(np.float32)
        d1 = (scores.domain == 1)[:, None]
        logits = np.where(d1, -right, right)
        return type(scores)(**{**scores.__dict__, "logits": logits})

    monkeypatch.setattr(gate, "candidate_scores", fallen)
    with pytest.raises(gate.GateError, match="fell: d1/task0") as caught:
        export_lib.export(method, dataset, base)
    assert "d0/" not in str(caught.value)
    assert names(base) == ["5"]


@pytest.mark.usefixtures("exported")
def test_export_interrupted_in_the_middle_leaves_the_old_version_only(
    method, dataset, base, monkeypatch
):
    before = (base / "5" / "saved_model.pb").read_bytes()

    def stop(folder, *_, **__):
        assert (folder / "saved_model.pb").exists(), "something was written"
        raise KeyboardInterrupt

    monkeypatch.setattr(parity, "check_parity", stop)
    with pytest.raises(KeyboardInterrupt):
        export_lib.export(method, dataset, base)
    assert names(base) == ["5"]
    assert (base / "5" / "saved_model.pb").read_bytes() == before


@pytest.mark.usefixtures("exported")
def test_version_that_is_not_new_is_refused_before_any_work(method, dataset, base):
    with pytest.raises(publish.PublishError, match="above the newest.*5"):
        export_lib.export(method, dataset, base, version=5)


@pytest.fixture
def run_main(method, dataset, monkeypatch, capsys, no_parity):
    monkeypatch.setattr(
        export_lib, "load_method", lambda *_: LoadedRun(method, dataset, None)
    )

    def run(*arguments):
        status = export_lib.main(["--workdir=unused", *arguments])
        return status, capsys.readouterr()

    return run


def test_command_line_prints_gate_parity_size_and_path(run_main, tmp_path):
    status, printed = run_main(f"--export_dir={tmp_path / 'm'}", "--version=3")
    assert status == 0
    assert printed.out.split("\n")[:2] == [
        "gate: first version, nothing to compare with",
        "parity: 1 rows, max |difference| 0 (TF2 loader), 0 (TF1 loader)",
    ]
    assert f"exported: {tmp_path / 'm' / '3'}" in printed.out
    assert "WARNING" not in printed.err, "no Keras warnings about configs"


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--unknown_domain=x"], "export.unknown_domain must be a domain"),
        (["--keep=-1"], "export.keep must be 0 or more; got -1"),
        (["--version=0"], "export.version must be at least 1; got 0"),
        (["--split=validation"], "samples/validation.parquet"),
    ],
)
def test_command_line_says_what_is_wrong_and_fails(run_main, tmp_path, arguments, text):
    status, printed = run_main(f"--export_dir={tmp_path / 'm'}", *arguments)
    assert status == 1
    assert text in printed.err
    assert "Traceback" not in printed.err
    assert publish.versions(tmp_path / "m") == []


def test_full_disk_fails_and_leaves_nothing(run_main, tmp_path, monkeypatch):
    def fill(_, folder, **__):
        pathlib.Path(folder, "saved_model.pb").write_text("half")
        raise tf.errors.ResourceExhaustedError(None, None, "No space left on device")

    monkeypatch.setattr(tf.saved_model, "save", fill)
    monkeypatch.setattr(signatures.ServingModule, "signatures", lambda _: {})
    status, printed = run_main(f"--export_dir={tmp_path / 'm'}")
    assert status == 1
    assert "No space left on device" in printed.err
    assert names(tmp_path / "m") == []


def test_command_line_of_a_missing_workdir_fails(tmp_path, capsys):
    arguments = [f"--workdir={tmp_path / 'none'}", f"--export_dir={tmp_path / 'm'}"]
    assert export_lib.main(arguments) == 1
    assert "export failed:" in capsys.readouterr().err


def test_help_shows_examples(capsys):
    with pytest.raises(SystemExit, match="0"):
        export_lib.main(["--help"])
    assert "python -m serving.export --workdir" in capsys.readouterr().out
