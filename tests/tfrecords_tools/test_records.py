import gzip
import itertools
import sys

import numpy as np
import pytest
import tensorflow as tf

from tfrecords_tools import records


@pytest.fixture
def path(tmp_path):
    """Five records of 30, 31, ... bytes, by TensorFlow's own writer."""
    result = tmp_path / "a.tfrecord"
    with tf.io.TFRecordWriter(str(result)) as writer:
        for i in range(5):
            writer.write(bytes(range(30 + i)))
    return result


# A record takes 16 bytes beside its data.
OFFSETS = [0, *itertools.accumulate(30 + i + 16 for i in range(5))]


def _flip(path, at):
    data = bytearray(path.read_bytes())
    data[at] ^= 0x10
    path.write_bytes(data)


def test_read_records_gives_number_offset_and_data(path):
    found = list(records.read_records(path))
    assert [r.number for r in found] == [0, 1, 2, 3, 4]
    assert [r.offset for r in found] == OFFSETS[:-1]
    assert [r.data for r in found] == [bytes(range(30 + i)) for i in range(5)]
    assert records.record_offsets(path).tolist() == OFFSETS
    assert records.record_at(path, 2, OFFSETS[2]) == bytes(range(32))


@pytest.mark.parametrize(
    ("at", "what"),
    [
        (OFFSETS[3] + 12 + 7, "data fail their checksum"),
        (OFFSETS[3] + 1, "length fails the checksum"),
        (OFFSETS[4] - 1, "data fail their checksum"),
    ],
)
def test_flipped_bit_is_named(path, at, what):
    _flip(path, at)
    with pytest.raises(records.RecordError, match=what) as error:
        list(records.read_records(path))
    assert (error.value.record, error.value.offset) == (3, OFFSETS[3])
    assert error.value.path == path
    assert f"record 3 at byte {OFFSETS[3]}" in str(error.value)


@pytest.mark.parametrize("size", [OFFSETS[2] + 5, OFFSETS[2] + 20, OFFSETS[3] - 1])
def test_truncated_file_is_named(path, size):
    path.write_bytes(path.read_bytes()[:size])
    for read in (records.read_records, records.record_offsets):
        with pytest.raises(records.RecordError, match="truncated") as error:
            list(read(path))
        assert error.value.record == 2


def test_broken_gzip_stream_is_named(path, tmp_path):
    packed = tmp_path / "a.gz"
    data = gzip.compress(path.read_bytes() * 50)
    packed.write_bytes(data)
    assert len(list(records.read_records(packed, "GZIP"))) == 250
    packed.write_bytes(data[: len(data) - 20])
    with pytest.raises(records.RecordError, match="GZIP stream breaks"):
        list(records.read_records(packed, "GZIP"))
    packed.write_bytes(path.read_bytes())
    with pytest.raises(records.RecordError, match="record 0"):
        list(records.read_records(packed, "GZIP"))


def test_empty_file_has_no_record(tmp_path):
    (tmp_path / "e").touch()
    assert list(records.read_records(tmp_path / "e")) == []
    assert records.record_offsets(tmp_path / "e").tolist() == [0]


def test_plain_crc_equals_the_published_check_value_and_the_library(monkeypatch):
    library = records.crc32c_function()
    monkeypatch.setitem(sys.modules, "google_crc32c", None)
    plain = records.crc32c_function()
    assert plain is not library
    assert plain(b"123456789") == 0xE3069283  # the check value of CRC-32C
    data = np.random.default_rng(0).bytes(999)
    assert plain(data) == library(data)
