"""Methods by name, as "module:class"; loaded when used."""

import importlib

from features.config import lookup_error
from models.method import Method

METHODS = {
    "aread": "models.methods.aread:AREAD",
    "cctl": "models.methods.cctl:CCTL",
    "din": "models.methods.din:DIN",
    "ecat": "models.methods.ecat:ECAT",
    "eta": "models.methods.eta:ETA",
    "m3oe": "models.methods.m3oe:M3oE",
    "mlp": "models.methods.mlp:MLP",
    "mmoe": "models.methods.mmoe:MMoE",
    "ple": "models.methods.ple:PLE",
    "shared_bottom": "models.methods.shared_bottom:SharedBottom",
    "ssctl": "models.methods.ssctl:SSCTL",
    "star": "models.methods.star:STAR",
}


def method_class(name: str) -> type[Method]:
    """Returns the class of a method.

    Raises:
      LookupError: For an unknown name, listing the known ones and the nearest.
    """
    if name not in METHODS:
        raise lookup_error("method", name, METHODS)
    module, _, attribute = METHODS[name].partition(":")
    return getattr(importlib.import_module(module), attribute)
