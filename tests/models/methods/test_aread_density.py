"""What a search tells about the least density S."""

import models  # noqa: F401 - chooses Keras 2, so it comes first

import logging  # isort: skip

import numpy as np  # isort: skip
import pytest  # isort: skip

from tests.models.methods.aread_data import Rows, aread  # isort: skip


def test_search_tells_in_how_many_domains_the_least_density_is_not_reached(
    monkeypatch, caplog
):
    """Of 18 edges S = 0.4 is ceil(7.2) = 8: domains end at 8, 9 and 10 edges."""
    method = aread()

    class Given:
        def run(self, domain, candidates, train, score):
            first, second = np.ones((2, 3), bool), np.zeros((3, 4), bool)
            second.flat[: 2 + domain] = True
            return [(first, second)], [0.5]

    monkeypatch.setattr(method.mask_search, "trial", Given())
    with caplog.at_level(logging.INFO, "models.aread.search"):
        given = method.search(Rows(method.schema))
    expected = {
        "density_least": 8 / 18,
        "density_largest": 10 / 18,
        "above_min_density": 2.0,
    }
    assert {name: given[name] for name in expected} == pytest.approx(expected)
    told = method.scalars()
    assert {n: told[f"mask/{n}"] for n in expected} == pytest.approx(expected)
    (line,) = (record.getMessage() for record in caplog.records)
    assert line == (
        "mask search 1: densities 0.444 to 0.556, min_density 0.4 not reached by "
        "2 of 3 domains"
    )
