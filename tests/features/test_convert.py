import datetime
import decimal

import numpy as np
import pyarrow as pa
import pytest

from features import convert

APRIL_25 = 1_650_844_800  # 2022-04-25 00:00 UTC


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (pa.array([7, None, -1]), ["7", None, "-1"]),
        (pa.array([2**63], pa.uint64()), ["9223372036854775808"]),
        (pa.array([7.0, 2.5, None, np.nan]), ["7", "2.5", None, None]),
        (pa.array([0.1], pa.float32()), ["0.1"]),
        (pa.array([True, False, None]), ["1", "0", None]),
        (pa.array(["a", "", "nan", None, " x"]), ["a", None, None, None, " x"]),
        (pa.array([b"a", b"\xff"]), ["a", "\ufffd"]),
        (pa.array([decimal.Decimal("7.00")]), ["7"]),
        (pa.array(["a", "b", None]).dictionary_encode(), ["a", "b", None]),
        (pa.array(["a"], pa.large_string()), ["a"]),
        (pa.nulls(2), [None, None]),
        (pa.array([], pa.int64()), []),
    ],
)
def test_to_id_writes_one_text_for_one_identifier(values, expected):
    texts, bad = convert.to_id(values)
    assert texts.type == pa.string()
    assert texts.to_pylist() == expected
    assert not bad.any()


@pytest.mark.parametrize(
    ("values", "separator", "expected"),
    [
        (pa.array(["a|b||c", None, "", "d"]), "|", [["a", "b", "c"], [], [], ["d"]]),
        (pa.array(["1 2", "3"]), " ", [["1", "2"], ["3"]]),
        (pa.array(["a|b"]), None, [["a|b"]]),
        (pa.array([[1, None, 2], None, []]), "|", [["1", "2"], [], []]),
        (
            pa.array([[1.0, 2.0], None], pa.list_(pa.float64(), 2)),
            "|",
            [["1", "2"], []],
        ),
        (pa.array([["a"]], pa.large_list(pa.string())), "|", [["a"]]),
        (pa.array([5, None]), "|", [["5"], []]),
        (pa.array([["x"], ["y", "z"], ["", "w"]])[1:], "|", [["y", "z"], ["w"]]),
    ],
)
def test_to_ids_reads_lists_and_text(values, separator, expected):
    lists, bad = convert.to_ids(values, separator)
    assert lists.type == pa.list_(pa.string())
    assert lists.to_pylist() == expected
    assert not bad.any()


def test_to_number_reads_text_and_marks_what_is_no_finite_number():
    texts = [
        "1",
        " 2.5 ",
        "-.5",
        "1e3",
        "5.",
        "nan",
        "",
        None,
        "x",
        "inf",
        "0x10",
        "1,5",
    ]
    numbers, bad = convert.to_number(pa.array(texts))
    assert numbers.to_pylist() == [1, 2.5, -0.5, 1000, 5, *[None] * 7]
    assert bad.tolist() == [False] * 8 + [True] * 4


def test_to_number_of_one_text_does_not_depend_on_its_neighbours():
    texts = ["1", "+1", "x", " 7", "1e400", "NaN", "1_0", ".", "-", "00012", "1e", "é"]
    together, bad = convert.to_number(pa.array(texts))
    for i, text in enumerate(texts):
        alone, is_bad = convert.to_number(pa.array([text]))
        assert alone.to_pylist() == together[i : i + 1].to_pylist()
        assert is_bad[0] == bad[i]


def test_to_number_of_floats_has_nan_missing_and_infinity_bad():
    numbers, bad = convert.to_number(pa.array([1.5, np.nan, None, np.inf]))
    assert numbers.to_pylist() == [1.5, None, None, None]
    assert bad.tolist() == [False, False, False, True]


@pytest.mark.parametrize("values", [pa.array([[1]]), pa.array([{"a": 1}])])
def test_nested_columns_are_refused_where_one_value_is_due(values):
    for read in (convert.to_number, convert.to_id):
        with pytest.raises(TypeError, match="got"):
            read(values)


@pytest.mark.parametrize(
    ("values", "unit", "expected"),
    [
        (pa.array([5, None]), "seconds", [5, None]),
        (pa.array([5.9, -0.5, np.nan]), "seconds", [5, -1, None]),
        (pa.array(["5", "5.9", None]), "order", [5, 5, None]),
        (pa.array([datetime.datetime(2022, 4, 25)]), "seconds", [APRIL_25]),
        (pa.array([datetime.datetime(2022, 4, 25)]), "milliseconds", [APRIL_25 * 1000]),
        (pa.array([datetime.date(2022, 4, 25), None]), "days", [19_107, None]),
        (
            pa.array(["2022-04-25", "2022-04-25T00:00:01Z", "7"]),
            "seconds",
            [APRIL_25, APRIL_25 + 1, 7],
        ),
    ],
)
def test_to_time_gives_whole_units(values, unit, expected):
    times, bad = convert.to_time(values, unit)
    assert times.type == pa.int64()
    assert times.to_pylist() == expected
    assert not bad.any()


@pytest.mark.parametrize(
    "values", [["soon"], ["1e30"], [np.inf], [1e19], ["2022-13-45"], ["2022-02-31"]]
)
def test_to_time_marks_what_is_no_time(values):
    _, bad = convert.to_time(pa.array(values), "seconds")
    assert bad.tolist() == [True]


def test_to_day_reads_numbers_text_and_dates():
    texts = pa.array(["2022-04-25", "20220425", None, "20221301", "x", "7"])
    days, bad = convert.to_day(texts)
    assert days.to_pylist()[:3] == [20220425, 20220425, None]
    assert bad.tolist() == [False, False, False, True, True, True]
    dates = pa.array([datetime.date(2022, 4, 25), None])
    assert convert.to_day(dates)[0].to_pylist() == [20220425, None]


def test_yyyymmdd_agrees_with_the_calendar():
    days = np.arange(-800, 40_000, 37)
    epoch = datetime.date(1970, 1, 1)
    expected = [
        int((epoch + datetime.timedelta(int(d))).strftime("%Y%m%d")) for d in days
    ]
    assert convert.yyyymmdd(days).tolist() == expected
    seconds = days * 86_400 + 86_399
    np.testing.assert_array_equal(convert.days_of(seconds, "seconds"), days)
    np.testing.assert_array_equal(convert.days_of(seconds * 1000, "milliseconds"), days)
