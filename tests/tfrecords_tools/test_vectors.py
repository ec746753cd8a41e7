"""Vectors by row: written once, found by `row_id`, whole or refused."""

import dataclasses

import numpy as np
import pytest

from tfrecords_tools import vectors
from tfrecords_tools.vectors import RowVectors, VectorsError, VectorsInfo, write_part

INFO = VectorsInfo("print", "train", "v1", {"a": 2, "b": 1})
IDS = np.array([40, 10, 2**61, 30, 20], np.int64)


def rows_of(ids):
    """Vectors that say which row they are of."""
    ids = np.asarray(ids)
    return {
        "a": np.stack([ids % 97, ids % 89], axis=1).astype(np.float32),
        "b": (ids % 83).astype(np.float32)[:, None],
    }


def batches(ids, size=2):
    for start in range(0, len(ids), size):
        part = ids[start : start + size]
        yield part, rows_of(part)


def assert_finds(found, ids):
    for name, value in rows_of(ids).items():
        assert found[name].dtype == np.float32
        np.testing.assert_array_equal(found[name], value)


@pytest.mark.parametrize("parts", [1, 2, 7])
def test_every_row_is_found_whatever_the_order_and_the_part(tmp_path, parts):
    for index in range(parts):  # of seven parts two are empty
        part = IDS[index::parts]
        rows = write_part(tmp_path, INFO, batches(part), index=index, parts=parts)
        assert rows == len(part)
    opened = RowVectors.open(tmp_path)
    assert (opened.num_rows, opened.info) == (5, INFO)
    asked = np.array([20, 20, 2**61, 10, 40, 30], np.int64)
    assert_finds(opened.lookup(asked), asked)
    assert opened.lookup(np.zeros(0, np.int64))["a"].shape == (0, 2)


def test_a_row_that_is_there_twice_is_found_once(tmp_path):
    write_part(tmp_path, INFO, batches(np.append(IDS, IDS[:2])))
    assert_finds(RowVectors.open(tmp_path).lookup(IDS), IDS)


@pytest.mark.parametrize("asked", [5, 25, 2**62])
def test_a_row_without_vectors_is_an_error(tmp_path, asked):
    write_part(tmp_path, INFO, batches(IDS))
    with pytest.raises(VectorsError, match=f"1 of 2 are not there, .*row_id {asked}"):
        RowVectors.open(tmp_path).lookup(np.array([10, asked]))


def test_a_missing_part_is_named(tmp_path):
    write_part(tmp_path, INFO, batches(IDS), index=0, parts=3)
    write_part(tmp_path, INFO, batches(IDS), index=2, parts=3)
    with pytest.raises(VectorsError, match="missing part-00001-of-00003"):
        RowVectors.open(tmp_path)
    with pytest.raises(VectorsError, match="missing part-00000-of-00001"):
        RowVectors.open(tmp_path / "nowhere")
    assert RowVectors.exists(tmp_path)
    assert not RowVectors.exists(tmp_path / "nowhere")


def test_parts_of_two_runs_are_refused(tmp_path):
    write_part(tmp_path, INFO, batches(IDS), index=0, parts=1)
    write_part(tmp_path, INFO, batches(IDS), index=0, parts=2)
    with pytest.raises(VectorsError, match="parts of two runs"):
        RowVectors.open(tmp_path)


def test_parts_of_two_models_are_refused(tmp_path):
    write_part(tmp_path, INFO, batches(IDS), index=0, parts=2)
    other = dataclasses.replace(INFO, version="v2")
    write_part(tmp_path, other, batches(IDS), index=1, parts=2)
    with pytest.raises(VectorsError, match="of one model and one data set"):
        RowVectors.open(tmp_path)


def test_a_part_is_not_written_over(tmp_path):
    write_part(tmp_path, INFO, batches(IDS))
    with pytest.raises(VectorsError, match="part-00000-of-00001 exists"):
        write_part(tmp_path, INFO, batches(IDS))
    assert vectors.describe(tmp_path, 0, 1)["rows"] == 5
    assert vectors.describe(tmp_path, 1, 2) == {}


def test_a_writer_that_fails_leaves_nothing(tmp_path):
    def broken():
        yield from batches(IDS)
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_part(tmp_path, INFO, broken())
    assert list(tmp_path.iterdir()) == []
    wrong = [(IDS, rows_of(IDS) | {"b": np.zeros([5, 3], np.float32)})]
    with pytest.raises(ValueError, match=r"'b' must have the shape \(5, 1\)"):
        write_part(tmp_path, INFO, wrong)
    assert list(tmp_path.iterdir()) == []
