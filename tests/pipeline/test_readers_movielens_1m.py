import gzip

import numpy as np
import pytest

from features.registry import dataset_spec
from features.spec import Source, Table
from pipeline import registry
from pipeline.readers.base import ReadError
from pipeline.readers.movielens_1m import published_position

RATINGS = [  # user, movie, rating, time
    (1, 90, 5, 100),
    (1, 40, 3, 300),
    (1, 41, 3, 200),
    (2, 40, 4, 50),
    (3, 70, 1, 10),
    (3, 90, 2, 10),
]
# Movies by first appearance: 90 40 41 70.  By (movie, user): 90:1,3 40:1,2 41:1 70:3,
# so the users come as 1, 3, 2: file order 1/90 1/40 1/41 3/90 3/70 2/40.
POSITIONS = [0, 1, 2, 5, 4, 3]


def write_original(folder, suffix=""):
    contents = {
        "ratings.dat": "".join("::".join(map(str, r)) + "\n" for r in RATINGS),
        "users.dat": "1::F::1::10::48067\n2::M::56::16::70072\n3::M::25::15::01234\n",
        "movies.dat": "90::Café: a story (1995)::Comedy|Drama\n"
        '40::Heat::Action\n41::"Quoted" One::Drama\n70::X::Horror|War\n',
    }
    for name, text in contents.items():
        data = text.encode("latin-1")
        data = gzip.compress(data) if suffix else data
        (folder / (name + suffix)).write_bytes(data)


def read(folder, columns=None):
    reader = registry.reader("movielens_1m")
    source = dataset_spec("movielens_1m").source
    rows, bad = [], []
    for shard in reader.shards(source, folder, columns):
        for batch, rejected in reader.read(shard):
            rows += batch.to_pylist() if batch is not None else []
            bad += rejected.to_pylist() if rejected is not None else []
    return rows, bad


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_original_files_give_ratings_with_published_position(tmp_path, suffix):
    write_original(tmp_path, suffix)
    rows, bad = read(tmp_path)
    assert not bad
    assert [(r["user_id"], r["movie_id"], r["rating"]) for r in rows] == [
        (u, m, str(r)) for u, m, r, _ in RATINGS
    ]
    assert [r["published_position"] for r in rows] == POSITIONS
    assert [r["order_in_user"] for r in rows] == [0, 2, 1, 0, 0, 1]  # ties: file order


def test_csv_of_ratings_gives_the_same_rows_and_keeps_its_own_order(tmp_path):
    write_original(tmp_path)
    expected, _ = read(tmp_path)
    (tmp_path / "ratings.dat").unlink()
    lines = ["user_id,movie_id,rating,timestamp,order_in_user"]
    lines += [",".join(map(str, (*r, 7))) for r in RATINGS[:-1]]
    lines.append("3,90,2,,")
    text = "\n".join(lines).encode()
    (tmp_path / "ratings.csv.gz").write_bytes(gzip.compress(text))
    rows, _ = read(tmp_path)
    for row, other in zip(rows, expected, strict=True):
        for name in ("user_id", "movie_id", "rating", "published_position"):
            assert row[name] == other[name]
    assert [r["order_in_user"] for r in rows] == ["7"] * 5 + [None]
    assert rows[-1]["timestamp"] is None


def test_tables_are_latin_1_and_have_the_first_genre(tmp_path):
    write_original(tmp_path)
    reader = registry.reader("movielens_1m")
    tables = reader.tables(dataset_spec("movielens_1m").source, tmp_path)
    movies = reader.read_table(tables["item_table"], tmp_path)
    assert movies["title"].to_pylist()[0] == "Café: a story (1995)"
    assert movies["title"].to_pylist()[2] == '"Quoted" One'
    assert movies["first_genre"].to_pylist() == ["Comedy", "Action", "Drama", "Horror"]
    users = reader.read_table(tables["user_table"], tmp_path, ["zip"])
    assert users.column_names == ["user_id", "zip"]
    assert users["zip"].to_pylist()[2] == "01234"


def test_malformed_ratings_are_rejected_and_the_others_ranked(tmp_path):
    write_original(tmp_path)
    with open(tmp_path / "ratings.dat", "a") as file:
        file.write("4::90\nx::90::3::1\n")
    rows, bad = read(tmp_path, ["user_id", "published_position"])
    assert [r["published_position"] for r in rows] == POSITIONS
    assert list(rows[0]) == ["user_id", "published_position"]
    assert [b["reason"] for b in bad] == ["malformed rating"] * 2
    assert "ratings.dat:7" in bad[0]["row"]


def test_position_equals_the_slow_twin_of_plain_python():
    rng = np.random.default_rng(0)
    pairs = sorted({(int(u), int(m)) for u, m in rng.integers(1, 30, (300, 2))})
    rng.shuffle(pairs)
    pairs.sort(key=lambda p: p[0])
    movie_rank, user_rank = {}, {}
    for _, movie in pairs:
        movie_rank.setdefault(movie, len(movie_rank))
    for user, _ in sorted(pairs, key=lambda p: (movie_rank[p[1]], p[0])):
        user_rank.setdefault(user, len(user_rank))
    file = sorted(pairs, key=lambda p: (user_rank[p[0]], movie_rank[p[1]]))
    got = published_position(*(np.array(c) for c in zip(*pairs, strict=True)))
    assert got.tolist() == [file.index(pair) for pair in pairs]


def test_missing_files_and_columns_are_named(tmp_path):
    with pytest.raises(ReadError, match="ratings.dat or ratings.csv"):
        read(tmp_path)
    write_original(tmp_path)
    with pytest.raises(ReadError, match="Did you mean 'rating'"):
        read(tmp_path, ["ratingg"])
    with pytest.raises(ReadError, match=r"must be users.dat and movies.dat"):
        registry.reader("movielens_1m").read_table(
            Table(path="usrs.dat", key="user_id"), tmp_path
        )
    with pytest.raises(ReadError, match="unknown to reader movielens_1m"):
        registry.reader("movielens_1m").shards(
            Source(reader="movielens_1m", options={"x": 1}), tmp_path
        )
