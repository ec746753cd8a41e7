import gzip
import json
import pickle

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from features.spec import Source, Table
from pipeline import registry
from pipeline.readers import base, files, json_lines
from pipeline.readers.base import ReadError


def read(source, folder, columns=None):
    """Returns (rows as dicts, rejected as (reason, row)), through pickled shards."""
    reader = registry.reader(source.reader)
    rows, bad = [], []
    for shard in reader.shards(source, folder, columns):
        for batch, rejected in reader.read(pickle.loads(pickle.dumps(shard))):
            if batch is not None:
                assert 0 < batch.num_rows <= base.BATCH_ROWS
                rows += batch.to_pylist()
            if rejected is not None:
                assert rejected.schema == base.REJECTED_SCHEMA
                bad += [(r["reason"], r["row"]) for r in rejected.to_pylist()]
    return rows, bad


def write(path, text):
    data = text if isinstance(text, bytes) else text.encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_csv_keeps_ids_as_text_and_rejects_malformed_rows(tmp_path, suffix):
    text = 'user,item,n\n007,"a,b",1\nshort\n8,,\n1,2,3,4\n'
    write(tmp_path / f"log.csv{suffix}", text)
    rows, bad = read(Source(path="log.csv*"), tmp_path)
    assert rows == [
        {"user": "007", "item": "a,b", "n": "1"},
        {"user": "8", "item": None, "n": None},
    ]
    name = f"log.csv{suffix}"
    assert bad == [
        (files.MALFORMED_CSV, f"{name}:3: short"),
        (files.MALFORMED_CSV, f"{name}:5: 1,2,3,4"),
    ]


def test_csv_line_numbers_go_on_past_the_first_block(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "BLOCK_BYTES", 64)
    lines = ["a,b", *(f"{i},x" for i in range(100)), "bad", "7,y"]
    write(tmp_path / "log.csv", "\n".join(lines))
    rows, bad = read(Source(path="log.csv"), tmp_path)
    assert len(rows) == 101
    assert rows[-1] == {"a": "7", "b": "y"}
    assert bad == [(files.MALFORMED_CSV, "log.csv:102: bad")]


def test_csv_reads_only_wanted_columns_separator_and_encoding(tmp_path):
    write(tmp_path / "log.csv", "a;b;c\n1;é;3\n".encode("latin-1"))
    source = Source(path="log.csv", separator=";", options={"encoding": "latin-1"})
    assert read(source, tmp_path, ["c", "b"])[0] == [{"b": "é", "c": "3"}]
    source = Source(path="log.csv", separator=";")
    with pytest.raises(ReadError, match="source.options.encoding"):
        read(source, tmp_path)


def test_csv_quoted_newlines_are_an_option(tmp_path):
    write(tmp_path / "log.csv", 'a,b\n"x\ny",1\n')
    source = Source(path="log.csv", options={"quoted_newlines": True})
    assert read(source, tmp_path) == ([{"a": "x\ny", "b": "1"}], [])


def test_tsv_is_separated_by_tabs(tmp_path):
    write(tmp_path / "log.tsv", "a\tb\n1,5\t2\n")
    assert read(Source(path="log.tsv"), tmp_path)[0] == [{"a": "1,5", "b": "2"}]


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_jsonl_rejects_malformed_lines_with_their_number(tmp_path, suffix, monkeypatch):
    monkeypatch.setattr(files, "BLOCK_BYTES", 50)
    lines = [json.dumps({"u": f"0{i}", "x": i}) for i in range(20)]
    lines[6] = '{"u": "06", "x": '
    lines[9] = "[1, 2]"
    lines[13] = ""
    name = f"log.jsonl{suffix}"
    write(tmp_path / name, "\n".join(lines))
    rows, bad = read(Source(path=name), tmp_path)
    assert [r["x"] for r in rows] == [i for i in range(20) if i not in (6, 9, 13)]
    assert rows[0]["u"] == "00"
    assert bad == [
        (json_lines.MALFORMED_JSON, f"{name}:7: {lines[6]}"),
        (json_lines.MALFORMED_JSON, f"{name}:10: [1, 2]"),
    ]


def test_jsonl_slow_path_gives_the_rows_of_the_fast_path(tmp_path):
    rows = [{"a": i, "b": [i, i + 1], "c": None if i % 3 else "x"} for i in range(50)]
    good = "".join(json.dumps(r) + "\n" for r in rows)
    write(tmp_path / "good.jsonl", good)
    write(tmp_path / "bad.jsonl", good + "{oops\n")
    fast, slow = (read(Source(path=f"{n}.jsonl"), tmp_path) for n in ("good", "bad"))
    assert fast[0] == slow[0] == rows
    assert len(slow[1]) == 1


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ('{"a": "2022-04-10"}', "2022-04-10"),  # no time made of text
        ('{"a": "007"}', "007"),
        ('{"a": 9223372036854775808}', "9223372036854775808"),  # past int64
        ('{"a": 7}\n{"a": "x"}', "7"),  # mixed types become text
    ],
)
def test_jsonl_identifiers_are_not_changed(tmp_path, line, value):
    write(tmp_path / "log.jsonl", line)
    assert read(Source(path="log.jsonl"), tmp_path)[0][0] == {"a": value}


def test_jsonl_finds_each_malformed_line_of_a_large_block(tmp_path):
    lines = [json.dumps({"a": i, "b": str(i)}) for i in range(3000)]
    wrong = [0, 1, 777, 1500, 2999]
    for n in wrong:
        lines[n] = lines[n][:-3]
    write(tmp_path / "log.jsonl", "\n".join(lines))
    rows, bad = read(Source(path="log.jsonl"), tmp_path)
    assert [int(row.split(":")[1]) - 1 for _, row in bad] == wrong
    assert [r["a"] for r in rows] == [n for n in range(3000) if n not in wrong]


def test_jsonl_invalid_utf8_rejects_its_line_only(tmp_path):
    write(tmp_path / "log.jsonl", b'{"a": "x"}\n{"a": "\xff"}\n')
    rows, bad = read(Source(path="log.jsonl"), tmp_path)
    assert rows == [{"a": "x"}]
    assert [b[1].split(":")[1] for b in bad] == ["2"]


def test_parquet_row_groups_are_shards_and_give_wanted_columns(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "SHARD_ROWS", 20)
    table = pa.table({"a": list(range(50)), "b": list("xy") * 25, "c": [0.5] * 50})
    pq.write_table(table, tmp_path / "log.parquet", row_group_size=10)
    source = Source(path="*.parquet")
    shards = registry.reader("files").shards(source, tmp_path, ["a", "c"])
    assert [(s.start, s.stop) for s in shards] == [(0, 2), (2, 4), (4, 5)]
    rows, _ = read(source, tmp_path, ["a", "c"])
    assert rows == table.select(["a", "c"]).to_pylist()


def test_globs_take_several_files_in_name_order(tmp_path):
    for i in (2, 0, 1):
        (tmp_path / f"d{i}").mkdir()
        write(tmp_path / f"d{i}" / "log.csv", f"a\n{i}\n")
    rows, _ = read(Source(path="d*/log.csv"), tmp_path)
    assert [r["a"] for r in rows] == ["0", "1", "2"]


def test_side_tables_give_the_columns_that_the_log_lacks(tmp_path):
    write(tmp_path / "log.csv", "user,item\nu,i\n")
    write(tmp_path / "users.csv", "user,age,city\nu,30,x\n")
    users = Table(path="users.csv", key="user")
    source = Source(path="log.csv", user_table=users)
    rows, _ = read(source, tmp_path, ["user", "item", "age"])
    assert rows == [{"user": "u", "item": "i"}]
    reader = registry.reader("files")
    table = reader.read_table(users, tmp_path, ["age"])
    assert table.to_pylist() == [{"user": "u", "age": "30"}]
    assert reader.read_table(users, tmp_path).column_names == ["user", "age", "city"]
    with pytest.raises(
        ReadError, match="'agee' must be in the log or a side table.*age"
    ):
        read(source, tmp_path, ["user", "agee"])


def test_side_table_of_json_lines_with_types_that_differ_by_block(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(files, "BLOCK_BYTES", 12)
    write(tmp_path / "u.jsonl", '{"user": 1}\n{"user": "b", "x": 2}\n')
    table = registry.reader("files").read_table(
        Table(path="u.jsonl", key="user"), tmp_path
    )
    assert table.to_pylist() == [{"user": "1", "x": None}, {"user": "b", "x": 2}]


def test_side_table_with_a_malformed_row_is_an_error(tmp_path):
    write(tmp_path / "users.csv", "user,age\nu,30\nbroken\n")
    with pytest.raises(ReadError, match="users.csv:3: broken"):
        registry.reader("files").read_table(
            Table(path="users.csv", key="user"), tmp_path
        )


def test_side_table_without_its_key_is_an_error(tmp_path):
    write(tmp_path / "users.csv", "uid,age\nu,30\n")
    with pytest.raises(ReadError, match="'user' must be"):
        registry.reader("files").read_table(
            Table(path="users.csv", key="user"), tmp_path
        )


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("log.csv", b"", "empty"),
        ("log.parquet", b"PAR1 and no more", "log.parquet must be a whole Parquet"),
        ("log.csv.gz", b"\x1f\x8b\x08\x00broken", "log.csv.gz must be readable"),
        (
            "log.jsonl.gz",
            b"\x1f\x8b\x08\x00broken",
            "log.jsonl.gz must be a whole file",
        ),
        ("log.jsonl", b"hello\nworld\n", "one JSON object a line"),
        ("log.csv", b"a,a\n1,2\n", "different column names"),
        ("log.dat", b"a,b\n1,2\n", "format must be stated"),
        ("lag.csv", b"a,b\n1,2\n", "no such file exists. Did you mean 'lag.csv'"),
    ],
)
def test_unusable_files_are_named(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    path = "log.csv" if name == "lag.csv" else name
    with pytest.raises(ReadError, match=message):
        read(Source(path=path), tmp_path)


def test_truncated_parquet_is_named(tmp_path):
    path = tmp_path / "log.parquet"
    pq.write_table(pa.table({"a": list(range(1000))}), path)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ReadError, match="log.parquet.*truncated"):
        read(Source(path="log.parquet"), tmp_path)


def test_truncated_gzip_is_named(tmp_path):
    text = "a,b\n" + "".join(f"{i},{i * 7919 % 1000}\n" for i in range(5000))
    (tmp_path / "log.csv.gz").write_bytes(gzip.compress(text.encode())[:-100])
    with pytest.raises(ReadError, match="log.csv.gz"):
        read(Source(path="log.csv.gz"), tmp_path)


def test_parquet_without_rows_is_an_error(tmp_path):
    pq.write_table(pa.table({"a": pa.array([], pa.int64())}), tmp_path / "log.parquet")
    with pytest.raises(ReadError, match="must have rows"):
        read(Source(path="log.parquet"), tmp_path)


def test_missing_folder_is_named(tmp_path):
    with pytest.raises(ReadError, match="raw_dir must be an existing folder"):
        read(Source(path="log.csv"), tmp_path / "nowhere")


def test_unknown_option_names_the_nearest(tmp_path):
    write(tmp_path / "log.csv", "a\n1\n")
    with pytest.raises(ReadError, match="Did you mean 'encoding'"):
        read(Source(path="log.csv", options={"encodin": "utf8"}), tmp_path)
    with pytest.raises(ReadError, match="quoted_newlines must be bool"):
        read(Source(path="log.csv", options={"quoted_newlines": "yes"}), tmp_path)
