"""Names of the Beam jobs and raw readers; each is loaded when it is used."""

import importlib
from typing import Any

from features.config import lookup_error

JOBS = {
    "augment": "pipeline.jobs.augment:build",
    "batch_score": "pipeline.jobs.batch_score:build",
    "preprocess": "pipeline.jobs.preprocess:build",
    "select_samples": "pipeline.jobs.select_samples:build",
}

READERS = {
    "amazon_timed": "pipeline.readers.amazon_timed:AmazonTimedReader",
    "epinions": "pipeline.readers.epinions:EpinionsReader",
    "files": "pipeline.readers.files:FileReader",
    "kuairand_pure": "pipeline.readers.kuairand_pure:KuaiRandReader",
    "movielens_1m": "pipeline.readers.movielens_1m:MovieLensReader",
}


def job(name: str) -> Any:
    """Returns the build function of a job: `build(pipeline, options, ...)`."""
    return _load("job", JOBS, name)


def reader(name: str) -> Any:
    """Returns a new reader of this name (`Source.reader`)."""
    return _load("source.reader", READERS, name)()


def _load(owner: str, registry: dict[str, str], name: str) -> Any:
    if name not in registry:
        raise lookup_error(owner, name, registry)
    module, _, attribute = registry[name].partition(":")
    return getattr(importlib.import_module(module), attribute)
