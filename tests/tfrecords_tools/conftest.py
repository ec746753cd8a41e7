"""Data sets shared by the tests of this folder; none of them is changed in place."""

import pytest

from tests.helpers import tiny_dataset

ROWS = 1000  # 800 of them training rows, in two files


@pytest.fixture(scope="session")
def blocks(tmp_path_factory):
    """Block format: 32 rows a block, so 25 blocks in two files of 400 rows."""
    return tiny_dataset.make_dataset(tmp_path_factory.mktemp("data") / "b", rows=ROWS)


@pytest.fixture(scope="session")
def rows(tmp_path_factory):
    """The same rows in row format, compressed."""
    folder = tmp_path_factory.mktemp("data") / "r"
    return tiny_dataset.make_dataset(
        folder, rows=ROWS, record_format="row", compression="GZIP"
    )
