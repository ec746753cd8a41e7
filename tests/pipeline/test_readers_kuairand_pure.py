import gzip

import pytest

from features.registry import dataset_spec
from pipeline import registry
from pipeline.readers import kuairand_pure
from pipeline.readers.base import ReadError

SOURCE = dataset_spec("kuairand_pure").source
HEADER = "user_id,video_id,date,tab,is_click\n"


def write(folder, name, text):
    data = text.encode()
    (folder / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)


def write_tables(folder):
    write(folder, "user_features_pure.csv", 'user_id,fans_range\n7,"[1,5)"\n8,0\n9,0\n')
    write(folder, "video_features_basic_pure.csv.gz", 'video_id,tag\n5,"3,4"\n')
    write(
        folder,
        "user_history_until_4_24.csv.gz",
        "user_id,history_len,last_time_ms,watch_seq,like_seq,long_watch_seq\n"
        "9,2,1,5 6,,5\n7,1,1,4,,\n",
    )


def read(folder, columns=None, source=SOURCE):
    reader = registry.reader("kuairand_pure")
    rows = []
    for shard in reader.shards(source, folder, columns):
        for batch, _ in reader.read(shard):
            rows += batch.to_pylist()
    return rows


def users(folder, columns=None):
    reader = registry.reader("kuairand_pure")
    table = reader.tables(SOURCE, folder)["user_table"]
    return reader.read_table(table, folder, columns).to_pylist()


def test_part_of_the_log_comes_with_earlier_history(tmp_path):
    write_tables(tmp_path)
    write(tmp_path, kuairand_pure.PART_LOG + ".gz", HEADER + "7,5,20220425,1,1\n")
    rows = read(tmp_path, ["user_id", "tab", "watch_seq", "tag", "fans_range"])
    assert rows == [{"user_id": "7", "tab": "1"}]
    assert [(u["user_id"], u["watch_seq"]) for u in users(tmp_path)] == [
        ("7", "4"),
        ("8", None),
        ("9", "5 6"),
    ]
    assert users(tmp_path, ["fans_range"])[0] == {"user_id": "7", "fans_range": "[1,5)"}


def test_publishers_logs_replace_the_part_and_the_history(tmp_path):
    write_tables(tmp_path)
    write(tmp_path, kuairand_pure.PART_LOG, HEADER + "7,5,20220425,1,1\n")
    write(
        tmp_path,
        kuairand_pure.WHOLE_LOG,
        HEADER + "7,5,20220422,1,0\n7,5,20220425,1,1\n",
    )
    early = "log_standard_4_08_to_4_21_pure.csv"
    write(tmp_path, early, HEADER + "8,5,20220408,0,0\n")
    write(tmp_path, early + ".gz", HEADER + "8,5,20220408,0,0\n")
    assert [r["date"] for r in read(tmp_path)] == ["20220408", "20220422", "20220425"]
    assert all(u["watch_seq"] is None for u in users(tmp_path))


def test_random_logs_join_by_path(tmp_path):
    write_tables(tmp_path)
    write(tmp_path, kuairand_pure.WHOLE_LOG, HEADER + "7,5,20220422,1,0\n")
    random = "log_random_4_22_to_5_08_pure.csv.gz"
    write(tmp_path, random, HEADER + "8,5,20220423,1,0\n")
    assert len(read(tmp_path)) == 1
    source = SOURCE.model_copy(update={"path": "log_*_pure.csv"})
    assert len(read(tmp_path, source=source)) == 2


def test_missing_history_file_gives_nulls(tmp_path):
    write_tables(tmp_path)
    (tmp_path / "user_history_until_4_24.csv.gz").unlink()
    assert [u["watch_seq"] for u in users(tmp_path)] == [None] * 3


def test_missing_files_and_columns_are_named(tmp_path):
    write_tables(tmp_path)
    with pytest.raises(ReadError, match=r"log_standard_\*_pure.csv"):
        read(tmp_path)
    write(tmp_path, kuairand_pure.PART_LOG, HEADER + "7,5,20220425,1,1\n")
    with pytest.raises(ReadError, match="Did you mean 'is_click'"):
        read(tmp_path, ["is_clic"])
    (tmp_path / "video_features_basic_pure.csv.gz").unlink()
    with pytest.raises(ReadError, match="video_features_basic_pure.csv"):
        read(tmp_path)
