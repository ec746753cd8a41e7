import hashlib
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest
import tensorflow as tf

from features.schema import EncodedColumn
from tests.helpers import tiny_dataset
from tfrecords_tools import decode, encode, records

COLUMNS = (
    EncodedColumn("i", "int64"),
    EncodedColumn("x", "float32"),
    EncodedColumn("s", "int64", 2),
)


def _batch(n=5):
    pairs = pa.FixedSizeListArray.from_arrays(pa.array(np.arange(2 * n)), 2)
    return pa.RecordBatch.from_arrays(
        [pa.array(np.arange(n)), pa.array(np.arange(n, dtype="f4") / 4), pairs],
        ["i", "x", "s"],
    )


def _examples(path):
    return [
        tf.train.Example.FromString(r.data).features.feature
        for r in records.read_records(path)
    ]


def test_block_holds_rows_column_by_column(tmp_path):
    path = tmp_path / "a"
    assert encode.write_records(path, _batch(), block_rows=2) == 3
    first, _, last = _examples(path)
    assert list(first["i"].int64_list.value) == [0, 1]
    assert list(first["x"].float_list.value) == [0.0, 0.25]
    assert list(first["s"].int64_list.value) == [0, 1, 2, 3]
    assert list(first["num_rows"].int64_list.value) == [2]
    assert list(last["s"].int64_list.value) == [8, 9]
    assert list(last["num_rows"].int64_list.value) == [1]


def test_row_format_holds_one_row_a_record(tmp_path):
    path = tmp_path / "a"
    assert encode.write_records(path, _batch(), record_format="row") == 5
    second = _examples(path)[1]
    assert sorted(second) == ["i", "s", "x"]
    assert list(second["s"].int64_list.value) == [2, 3]


@pytest.mark.parametrize("compression", ["", "GZIP"])
@pytest.mark.parametrize("record_format", ["block", "row"])
@pytest.mark.parametrize("n", [0, 1, 7])
def test_round_trip_gives_equal_rows(tmp_path, n, record_format, compression):
    path = tmp_path / "a"
    form = {"record_format": record_format, "compression": compression}
    encode.write_records(path, _batch(n), block_rows=3, **form)
    assert decode.read_table(path, COLUMNS, **form).equals(_batch(n))


def test_slices_and_chunked_tables_are_written_as_they_read(tmp_path):
    table = pa.Table.from_batches([_batch(5).slice(1, 3), _batch(9).slice(2)])
    encode.write_records(tmp_path / "a", table, block_rows=4)
    found = decode.read_table(tmp_path / "a", COLUMNS)
    assert found.column(0).to_pylist() == [1, 2, 3, 2, 3, 4, 5, 6, 7, 8]
    assert found.column(2).to_pylist()[:2] == [[2, 3], [4, 5]]


def test_equal_rows_give_equal_bytes_in_any_process(tmp_path):
    script = (
        "import sys; from tests.helpers import tiny_dataset as t\n"
        "from tfrecords_tools import encode\n"
        "encode.write_records(sys.argv[1], t.make_rows(70), block_rows=32,"
        " compression='GZIP')\n"
    )
    other, path = tmp_path / "other", tmp_path / "own"
    subprocess.run([sys.executable, "-c", script, str(other)], check=True)
    digests = {hashlib.sha256(other.read_bytes()).hexdigest()}
    for _ in range(3):
        encode.write_records(
            path, tiny_dataset.make_rows(70), block_rows=32, compression="GZIP"
        )
        digests.add(hashlib.sha256(path.read_bytes()).hexdigest())
    assert len(digests) == 1


def test_nulls_types_and_formats_are_refused(tmp_path):
    nulls = pa.RecordBatch.from_arrays([pa.array([1, None])], ["i"])
    with pytest.raises(ValueError, match="'i' must have no nulls; got 1"):
        encode.write_records(tmp_path / "a", nulls)
    texts = pa.RecordBatch.from_arrays([pa.array(["a"])], ["i"])
    with pytest.raises(TypeError, match="int64 or float32.*got string"):
        encode.write_records(tmp_path / "a", texts)
    for bad in ({"record_format": "rows"}, {"compression": "ZIP"}, {"block_rows": 0}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            encode.write_records(tmp_path / "a", _batch(), **bad)


def test_decode_names_file_and_column_of_a_foreign_schema(tmp_path):
    path = tmp_path / "a"
    encode.write_records(path, _batch(), block_rows=2)
    with pytest.raises(decode.DecodeError, match="a: records from 0 on.*column y must"):
        decode.read_table(path, [EncodedColumn("y", "int64")])
    with pytest.raises(decode.DecodeError, match="column s must have 3 value"):
        decode.read_table(path, [EncodedColumn("s", "int64", 3)])


def test_wrong_number_of_values_is_found_in_a_graph_too(tmp_path):
    path = tmp_path / "a"
    encode.write_records(path, _batch(), block_rows=2)
    columns = [EncodedColumn("s", "int64", 3)]
    stream = tf.data.TFRecordDataset(str(path)).batch(2)
    parsed = stream.map(lambda s: decode.parse_columns(s, columns, "block"))
    with pytest.raises(
        tf.errors.InvalidArgumentError, match="column s must have 3 value"
    ):
        list(parsed)
