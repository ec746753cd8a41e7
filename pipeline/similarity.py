"""Settings of the similarity step of `select_samples`."""

from collections.abc import Sequence
from typing import Any, Literal

import pydantic
from pydantic import Field

from features.config import Config, ConfigError, apply_overrides


class SimilarOptions(Config):
    """Nodes whose vector is near that of a seed: a hop of its own, after all others."""

    sides: tuple[Literal["users", "items"], ...] = Field(
        ("users", "items"), min_length=1, description="what may be added"
    )
    dim: int = Field(64, ge=1, le=512, description="width of the vectors")
    min_count: int = Field(
        2, ge=1, description="common users of two items (items of two users) that count"
    )
    min_cosine: float = Field(0.6, description="to a seed; cosines are good to 0.001")
    top_n: int = Field(10, ge=1, description="nodes that a seed adds, the nearest")
    max_seeds: int = Field(
        100_000, ge=1, description="of a side that are compared, those of smallest hash"
    )

    @pydantic.model_validator(mode="after")
    def _check(self) -> "SimilarOptions":
        if not 0 < self.min_cosine < 1:
            raise ValueError(
                f"min_cosine must be above 0 and below 1; got {self.min_cosine}. "
                "Lower it for more nodes, and bound them by top_n."
            )
        if len(set(self.sides)) != len(self.sides):
            raise ValueError(
                f"sides must name each side once; got {', '.join(self.sides)}. "
                "Leave out what stands twice."
            )
        return self


def parse_settings(texts: Sequence[str]) -> dict[str, Any]:
    """Returns the mapping that `name=value` texts of a command line spell.

    >>> parse_settings(["dim=32", "sides=[items]"])
    {'dim': 32, 'sides': ['items']}

    Raises:
      ConfigError: For a text without a name or `=`.
    """
    for text in texts:
        if not text.partition("=")[0] or "=" not in text:
            raise ConfigError(
                f"--similar must be followed by name=value; got {text!r}. "
                "Write for example --similar top_n=20 min_cosine=0.5."
            )
    return apply_overrides({}, texts)
