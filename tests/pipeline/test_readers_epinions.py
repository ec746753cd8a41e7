import gzip

import numpy as np
import pytest
import scipy.io

from features.registry import dataset_spec
from pipeline import registry
from pipeline.readers.base import ReadError
from pipeline.readers.epinions import COLUMNS

ROWS = [(1, 10, 3, 5, 2, 1), (2, 11, 27, 1, 1, 11)]


def read(folder, columns=None):
    reader = registry.reader("epinions")
    rows, bad = [], []
    for shard in reader.shards(dataset_spec("epinions").source, folder, columns):
        for batch, rejected in reader.read(shard):
            rows += batch.to_pylist() if batch is not None else []
            bad += rejected.to_pylist() if rejected is not None else []
    return rows, bad


def test_csv_gives_its_rows_and_rejects_malformed_ones(tmp_path):
    lines = [",".join(COLUMNS), *(",".join(map(str, r)) for r in ROWS), "3,4"]
    (tmp_path / "ratings.csv.gz").write_bytes(gzip.compress("\n".join(lines).encode()))
    rows, bad = read(tmp_path, ["user_id", "rating"])
    assert rows == [{"user_id": "1", "rating": "5"}, {"user_id": "2", "rating": "1"}]
    assert [b["row"] for b in bad] == ["ratings.csv.gz:4: 3,4"]


@pytest.mark.parametrize(
    "name", ["rating_with_timestamp.mat", "epinions_rating_with_timestamp.mat"]
)
def test_publishers_matrix_gives_the_same_columns(tmp_path, name):
    scipy.io.savemat(tmp_path / name, {"rating": np.array(ROWS, np.float64)})
    rows, _ = read(tmp_path)
    assert [tuple(row[c] for c in COLUMNS) for row in rows] == ROWS
    assert read(tmp_path, ["category_id"])[0] == [
        {"category_id": 3},
        {"category_id": 27},
    ]


def test_unusable_input_is_named(tmp_path):
    with pytest.raises(ReadError, match="ratings.csv or rating_with_timestamp.mat"):
        read(tmp_path)
    path = tmp_path / "rating_with_timestamp.mat"
    scipy.io.savemat(path, {"rating": np.ones((3, 4))})
    with pytest.raises(ReadError, match="one matrix of 6 columns"):
        read(tmp_path)
    path.write_bytes(b"not MATLAB")
    with pytest.raises(ReadError, match="whole MATLAB file"):
        read(tmp_path)
    (tmp_path / "ratings.csv").write_text("user_id,product_id\n1,2\n")
    with pytest.raises(ReadError, match="'category_id' must be"):
        read(tmp_path)
