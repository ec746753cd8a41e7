"""Planted logs: one per method, with a structure that the method is made to find.

Each holds what the method claims to use, and punishes what a lazy model does instead:

planted_ssctl   Domain 0 has 80 % of the rows.  Half of them follow, in secret, the
                rule of one of four small domains: those whose user and item are
                both typical of it.  All other rows of domain 0 pair a user typical of
                one with an item typical of another, and follow its own, other rule.
planted_aread   24 domains, 12 of them with less than 2 % of the rows, in 4 hidden
                groups (domain index modulo 4).  Inside a group tastes agree.
planted_ecat    Domain 0 is the source, domain 1 (6 %) the target.  Source clicks are
                flipped for some segments; half of the target's rows are of
                users of the other segments, the rest of few users.  All tastes turn by
                about 70 degrees over the two weeks.
planted_m3oe    3 domains x 2 tasks; domain 1 has the opposite taste, and a like falls
                with what a click rises with.
planted_cctl    Domain 0 is the source, domain 1 (10 %) the target.  Half of the source
                rows, those of some item categories, have their click flipped.

Flipped logs have about as many clicks as not, so that the click rate gives nothing
away.  The truth of every row is beside the log (`features.synthetic.best_auc`).
"""

from collections.abc import Mapping
from typing import Any

from features.config import lookup_error
from features.synthetic_config import SyntheticConfig

# Few users and items, and a strong taste: what is planted shows in minutes of training.
_SIZE = {"num_users": 5_000, "num_items": 2_000, "taste": 3.0}

PRESETS: Mapping[str, Mapping[str, Any]] = {
    "planted_ssctl": {
        **_SIZE,
        "name": "planted_ssctl",
        "rows": 250_000,
        "num_segments": 40,
        "num_categories": 100,
        "num_domains": 5,
        "dominant_share": 0.8,
        "small_domain_ratio": 0.8,
        "overlap": 0.8,
        "num_groups": 1,
        "conflict": False,
        "shared_taste": 0.3,
        "group_taste": 0.0,
        "domain_taste": 1.1,
        "typical": 0.85,
        "hidden_share": 0.5,
    },
    "planted_aread": {
        **_SIZE,
        "name": "planted_aread",
        "rows": 600_000,
        "num_domains": 24,
        "dominant_share": 0.17,
        "small_domain_ratio": 0.84,
        "num_groups": 4,
        "conflict": False,
        "shared_taste": 0.3,
        "group_taste": 1.2,
        "domain_taste": 0.15,
    },
    "planted_ecat": {
        **_SIZE,
        "name": "planted_ecat",
        "rows": 400_000,
        "days": 14,
        "num_domains": 2,
        "dominant_share": 0.94,
        "num_groups": 1,
        "conflict": False,
        "domain_taste": 0.0,
        "click_logit": 0.0,
        "taste_turn": 1.2,
        "flip_by": "segment",
        "flip_share": 0.6,
        "inside": 0.5,
    },
    "planted_m3oe": {
        **_SIZE,
        "name": "planted_m3oe",
        "rows": 300_000,
        "num_domains": 3,
        "dominant_share": 0.4,
        "num_groups": 1,
        "conflict": True,
        "conflict_task": True,
        "group_taste": 0.0,
    },
    "planted_cctl": {
        **_SIZE,
        "name": "planted_cctl",
        "rows": 300_000,
        "num_domains": 2,
        "dominant_share": 0.9,
        "num_groups": 1,
        "conflict": False,
        "group_taste": 0.0,
        "domain_taste": 0.15,
        "click_logit": 0.0,
        "flip_by": "category",
        "flip_share": 0.5,
    },
}


def preset(name: str, **changes: Any) -> SyntheticConfig:
    """Returns the settings of a planted log.

    Args:
      name: A name of `PRESETS`.
      **changes: Other values of some settings, such as `rows=20_000`.

    Raises:
      LookupError: For an unknown name.
      ConfigError: For a setting that is not valid.
    """
    if name not in PRESETS:
        raise lookup_error("preset", name, PRESETS)
    return SyntheticConfig.parse({**PRESETS[name], **changes}, where=f"preset {name}")
