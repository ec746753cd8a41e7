"""Durations of a run: steps, rows or epochs in, steps out."""

import math
import re

UNITS = ("steps", "rows", "epochs")
_PATTERN = re.compile(r"^\s*([0-9][0-9_.]*(?:[eE][0-9]+)?)\s*([a-z]+)\s*$")


def parse_duration(value: int | str) -> tuple[float, str]:
    """Returns (amount, unit) of a duration.

    Args:
      value: Steps as a whole number, or text such as "200 steps", "5e6 rows",
        "0.5 epochs" (a singular unit is fine).

    Raises:
      ValueError: For anything else, zero and negative amounts included.

    >>> parse_duration(200), parse_duration("1 epoch"), parse_duration("5e3 rows")
    ((200.0, 'steps'), (1.0, 'epochs'), (5000.0, 'rows'))
    """
    text = f"{value} steps" if isinstance(value, int) else str(value)
    found = _PATTERN.match(text)
    unit = (found[2] if found[2].endswith("s") else found[2] + "s") if found else ""
    if found is None or unit not in UNITS or float(found[1]) <= 0:
        raise ValueError(
            "must be a positive number of steps, or text such as '200 steps', "
            "'5e6 rows' or '0.5 epochs'"
        )
    return float(found[1]), unit


def to_steps(value: int | str, *, rows_per_step: int, steps_per_epoch: int) -> int:
    """Returns the duration in steps: at least 1, rounded up.

    Args:
      value: See `parse_duration`.
      rows_per_step: Rows of the global batch.
      steps_per_epoch: Steps in one pass over the main stream.

    >>> to_steps("0.5 epochs", rows_per_step=10, steps_per_epoch=5)
    3
    >>> to_steps("95 rows", rows_per_step=10, steps_per_epoch=5)
    10
    """
    amount, unit = parse_duration(value)
    factor = {"steps": 1.0, "rows": 1.0 / rows_per_step, "epochs": steps_per_epoch}
    # 1e-9: 0.1 * 30 is 3.0000000000000004 and must stay 3.
    return max(1, math.ceil(amount * factor[unit] - 1e-9))
