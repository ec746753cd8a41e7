"""Command lines `show`, `verify` and `repack`, on sound and on damaged data sets."""

import json
import pathlib
import re
import shutil

import numpy as np
import pyarrow as pa
import pytest

from features.dataset import Dataset, DatasetError
from tests.helpers import tiny_dataset
from tfrecords_tools import decode, encode, records, repack, show, verify

RECORD_HEADER_BYTES = 12  # length and its checksum


@pytest.fixture
def copy(blocks, tmp_path):
    """A copy of the block data set, to be damaged."""
    shutil.copytree(blocks.data_dir, tmp_path / "data")
    return Dataset.open(tmp_path / "data")


def change_json(data_dir, change):
    path = data_dir / "dataset.json"
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def run(module, *arguments):
    return module.main([str(a) for a in arguments])


def all_rows(dataset, split):
    info = dataset.info
    return decode.read_table(
        dataset.files(split),
        info.columns,
        record_format=info.record_format,
        compression=info.compression,
    )


# ----------------------------------------------------------------------- show


def test_show_prints_counts_of_split_domain_and_label(blocks, capsys):
    assert run(show, blocks.data_dir, "--rows", 0) == 0
    out = capsys.readouterr().out
    batch = tiny_dataset.make_rows(1000)
    domain = np.asarray(batch["domain"])[:800]
    label = np.asarray(batch["label/task1"])[:800]
    rows = (domain == 1).sum()
    positives = ((domain == 1) & (label == 1)).sum()
    labelled = ((domain == 1) & (label >= 0)).sum()
    assert "train: 800 rows, 2 files" in out
    assert "validation: 100 rows" in out
    line = next(line for line in out.splitlines() if line.split()[:1] == ["d1"])
    cells = line.split()
    assert cells[1] == str(rows)
    assert cells[2] == f"{rows / 800:.1%}"
    assert cells[6:] == [
        str(positives),
        f"{positives / labelled:.4f}",
        str(rows - labelled),
    ]
    assert blocks.info.fingerprint in out


def test_show_decodes_the_first_rows_to_raw_values(blocks, capsys):
    assert run(show, blocks.data_dir, "--split", "validation", "--rows", 2) == 0
    shown = capsys.readouterr().out.split("row 1\n")[1].splitlines()
    values = dict(line.split(maxsplit=1) for line in shown)
    batch = tiny_dataset.make_rows(1000)
    row = {name: batch[name][801].as_py() for name in batch.schema.names}
    # Ids 0 and 1 are reserved; item k has id k + 2 and the text i<k>.
    assert values["item_id"] == f"i{row['item_id'] - 2}"
    assert values["domain"] == f"d{row['domain']}"
    assert float(values["price"]) == pytest.approx(row["price"] * 2 + 10, rel=1e-4)
    assert (
        values["age"]
        == ["[-inf, 20)", "[20, 30)", "[30, 50)", "[50, inf)"][row["age"] - 2]
    )
    assert values["history"] == str([f"i{i - 2}" for i in row["history"] if i])
    assert values["row_id"] == "801"


def test_show_takes_one_file_by_its_listed_name(blocks, capsys):
    name = blocks.info.files["train"][1]
    assert run(show, blocks.data_dir, "--file", name, "--rows", 1) == 0
    out = capsys.readouterr().out
    assert out.split("first rows of ")[1].startswith(name)
    row_id = next(line for line in out.splitlines() if "row_id" in line)
    assert row_id.split() == ["row_id", "400"]  # 800 rows in two files


def test_show_names_the_file_that_is_not_there(blocks, capsys):
    assert run(show, blocks.data_dir, "--file", "train/nope.tfrecord") == 1
    error = capsys.readouterr().err
    assert "--file must be a file of" in error
    assert "nope.tfrecord" in error


@pytest.mark.parametrize("module", [show, verify])
def test_tools_refuse_a_folder_that_is_no_finished_data_set(module, copy, capsys):
    (copy.data_dir / "_SUCCESS").unlink()
    assert run(module, copy.data_dir) == 1
    assert "is unfinished (no _SUCCESS)" in capsys.readouterr().err
    assert run(module, copy.data_dir / "nowhere") == 1
    assert "is missing" in capsys.readouterr().err


@pytest.mark.parametrize("module", [show, verify, repack])
def test_tools_print_help_with_examples(module, capsys):
    with pytest.raises(SystemExit) as stopped:
        run(module, "--help")
    assert stopped.value.code == 0
    assert "examples:\n  python -m tfrecords_tools." in capsys.readouterr().out


# --------------------------------------------------------------------- verify


@pytest.mark.parametrize("name", ["blocks", "rows"])
def test_verify_says_sound_with_the_rows_it_read(name, request, capsys):
    dataset = request.getfixturevalue(name)
    assert run(verify, dataset.data_dir) == 0
    out = capsys.readouterr().out
    assert (
        f"sound; 1,000 rows in 6 files, fingerprint {dataset.info.fingerprint}" in out
    )


def flip(path, at):
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def test_verify_names_file_and_record_of_a_flipped_bit(copy, capsys):
    path = copy.files("train")[1]
    third = int(records.record_offsets(path)[2])
    flip(path, third + RECORD_HEADER_BYTES + 100)
    assert run(verify, copy.data_dir) == 1
    error = capsys.readouterr().err
    assert f"{path}: record 2 at byte {third}" in error
    assert "the data fail their checksum" in error
    assert "Restore the file" in error
    # Rows behind the damage are unread: their counts must not be reported as wrong.
    assert "as dataset.json says" not in error


def test_verify_names_file_and_record_of_a_truncated_file(copy, capsys):
    path = copy.files("test")[0]
    offsets = records.record_offsets(path)
    path.write_bytes(path.read_bytes()[:-9])
    assert run(verify, copy.data_dir, "--split", "test") == 1
    error = capsys.readouterr().err
    assert f"{path}: record {len(offsets) - 2} at byte {offsets[-2]}" in error
    assert "truncated" in error


def test_verify_of_another_split_does_not_see_the_damage(copy):
    path = copy.files("test")[0]
    path.write_bytes(path.read_bytes()[:-9])
    assert verify.verify(copy, ["train", "validation"]) == []


def test_verify_finds_files_missing_and_unlisted(copy):
    listed = copy.files("train")[0]
    listed.rename(listed.with_name("part-00007-of-00009.tfrecord"))
    missing, unlisted = verify.verify(copy)
    assert missing.startswith(f"{listed} must exist")
    assert "part-00007-of-00009.tfrecord must be listed" in unlisted


def test_verify_finds_counts_that_differ_from_dataset_json(copy, capsys):
    cell = copy.info.counts["train"]["d2"]
    rows, positives = cell["rows"], cell["positives"]["task0"]

    def change(values):
        values["counts"]["train"]["d2"]["rows"] += 5
        values["counts"]["train"]["d2"]["positives"]["task0"] -= 1

    change_json(copy.data_dir, change)
    assert run(verify, copy.data_dir) == 1
    found = capsys.readouterr().err.splitlines()
    assert len(found) == 2
    assert (
        f"rows in split 'train', domain 'd2' must be {rows + 5} as dataset.json "
        f"says; the files hold {rows}" in found[1]
    )
    assert (
        f"positives of task 'task0' in split 'train', domain 'd2' must be "
        f"{positives - 1}" in found[0]
    )


@pytest.mark.parametrize("module", [show, verify])
def test_tools_refuse_a_data_set_of_another_fingerprint(module, copy, capsys):
    path = copy.data_dir / "vocab/item_id.txt"
    path.write_text(path.read_text().replace("i7\n", "j7\n"))
    assert run(module, copy.data_dir) == 1
    error = capsys.readouterr().err
    assert f"fingerprint must be {copy.info.fingerprint} as written" in error
    assert "prepare the data set again" in error


def test_dataset_refuses_a_changed_spec(copy):
    change_json(copy.data_dir, lambda v: v["spec"]["tasks"][0].update(column="other"))
    with pytest.raises(DatasetError, match="fingerprint must be"):
        Dataset.open(copy.data_dir)


def test_dataset_json_that_is_cut_short_is_named(copy):
    path = copy.data_dir / "dataset.json"
    path.write_text(path.read_text()[:-40])
    with pytest.raises(DatasetError, match=r"dataset\.json must be readable JSON"):
        Dataset.open(copy.data_dir)


@pytest.mark.parametrize(
    ("column", "value", "rule"),
    [
        ("item_id", 999, "0 to 61; got"),
        ("domain", 3, "0 to 2; got"),
        ("label/task1", 2, r"0, 1 or -1 \(masked\)"),
        ("price", np.float32("nan"), "finite"),
    ],
)
def test_verify_finds_values_out_of_range(copy, column, value, rule):
    path = copy.files("validation")[1]
    batch = decode.read_table(path, copy.info.columns)
    place = batch.schema.get_field_index(column)
    values = batch.column(place).to_numpy(zero_copy_only=False).copy()
    values[3] = value
    columns = list(batch.columns)
    columns[place] = pa.array(values, from_pandas=False)
    batch = pa.RecordBatch.from_arrays(columns, batch.schema.names)
    encode.write_records(path, batch, block_rows=copy.info.block_rows)
    (finding, *_) = verify.verify(copy, ["validation"])
    assert finding.startswith(f"{path}: column {column!r} must be ")
    assert re.search(rule, finding)


# --------------------------------------------------------------------- repack


def test_repack_to_rows_and_back_gives_equal_files(blocks, tmp_path, capsys):
    rows_dir, back_dir = tmp_path / "rows", tmp_path / "back"
    assert run(repack, blocks.data_dir, rows_dir, "--format", "row") == 0
    assert f"{rows_dir}: 1,000 rows, row format" in capsys.readouterr().out
    flags = ("--format", "block", "--block_rows", 32)
    assert run(repack, rows_dir, back_dir, *flags) == 0
    as_rows, back = Dataset.open(rows_dir), Dataset.open(back_dir)
    assert as_rows.info.record_format == "row"
    for split in ("train", "validation", "test"):
        assert all_rows(as_rows, split).equals(all_rows(blocks, split))
        pairs = zip(back.files(split), blocks.files(split), strict=True)
        assert all(a.read_bytes() == b.read_bytes() for a, b in pairs)
    assert (back_dir / "dataset.json").read_bytes() == (
        blocks.data_dir / "dataset.json"
    ).read_bytes()
    assert verify.verify(as_rows) == []


def test_repack_keeps_the_fingerprint_and_the_other_files(copy, tmp_path):
    (copy.data_dir / "rejected").mkdir()
    (copy.data_dir / "rejected/rows.jsonl").write_text("{}\n")
    packed = repack.repack(copy, tmp_path / "gz", compression="GZIP", block_rows=64)
    assert packed.info.fingerprint == copy.info.fingerprint
    assert packed.info.block_rows == 64
    assert (packed.data_dir / "rejected/rows.jsonl").read_text() == "{}\n"
    assert all(p.name.endswith(".tfrecord.gz") for p in packed.files("train"))
    assert all_rows(packed, "train").equals(all_rows(copy, "train"))
    assert verify.verify(packed) == []


def test_repack_of_rows_makes_blocks_of_the_default_size(rows, tmp_path):
    packed = repack.repack(rows, tmp_path / "b", record_format="block", compression="")
    assert packed.info.block_rows == 4096
    assert len(list(records.read_records(packed.files("train")[0]))) == 1  # 400 rows


def test_repack_refuses_a_taken_folder(blocks, copy, capsys):
    assert run(repack, blocks.data_dir, copy.data_dir) == 1
    assert "repack.out_dir must not exist yet" in capsys.readouterr().err
    assert verify.verify(copy) == []


def test_repack_of_a_corrupt_file_names_it_and_leaves_nothing(copy, tmp_path, capsys):
    flip(copy.files("train")[0], 40)
    assert run(repack, copy.data_dir, tmp_path / "out", "--format", "row") == 1
    assert "record 0 at byte 0" in capsys.readouterr().err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["data"]


def test_repack_on_a_full_disk_leaves_nothing(copy, tmp_path, capsys, monkeypatch):
    def full(path, *_, **__):
        pathlib.Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr("tfrecords_tools.encode.write_records", full)
    assert run(repack, copy.data_dir, tmp_path / "out") == 1
    assert "No space left on device" in capsys.readouterr().err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["data"]
