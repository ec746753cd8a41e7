import numpy as np
import pytest

from serving import artefact_check


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        (np.array(["a", "ä"]), [b"a", b"\xc3\xa4"]),
        (np.array([["x", ""]]), [[b"x", b""]]),
        (np.zeros((1, 0), "U1"), [[]]),
        (np.zeros((0,), "U1"), []),
    ],
)
def test_texts_become_bytes_of_the_same_shape_with_or_without_elements(values, wanted):
    encoded = artefact_check._encoded(values)
    assert encoded.dtype.kind == "S"
    assert encoded.shape == values.shape
    assert encoded.tolist() == wanted


def test_numbers_are_left_alone():
    values = np.array([1.5, np.nan], np.float32)
    assert artefact_check._encoded(values) is values
