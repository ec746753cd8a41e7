"""Isthmus as an installable package; also what Beam ships to its workers.

`pip install .` gives training and serving, `.[pipeline]` adds the Beam jobs and
data validation, `.[search]` the search for settings, `.[dev]` everything that the
tests and checks need.  Exact versions live in `requirements.lock` (`make lock`); the
bounds here say what the code is written against.
"""

from setuptools import find_packages, setup

PACKAGES = ("features", "tfrecords_tools", "pipeline", "models", "serving")

TRAIN_AND_SERVE = [
    "aiohttp>=3.9",  # REST server
    "grpcio>=1.60",
    "jinja2>=3.1",
    "matplotlib>=3.8",
    "numpy>=1.26,<2",
    "pandas>=1.5",
    "prometheus-client>=0.20",
    "protobuf>=4.21,<5",
    "pyarrow>=10.0.1",
    "pydantic>=2.7,<3",
    "pyfarmhash>=0.3.2",
    "pyyaml>=6",
    "scipy>=1.11",
    "setuptools<81",  # tensorboard 2.16 imports pkg_resources
    "tensorboard>=2.16",
    "tensorflow>=2.16.2,<2.17",
    "tensorflow-recommenders==0.7.7",
    "tensorflow-serving-api>=2.16,<2.17",
    "tf-keras>=2.16,<2.17",
    "tqdm>=4.66",
]
PIPELINE = [
    "apache-beam==2.72.0",
    "dill==0.3.1.1",  # tfx-bsl needs it and does not declare it
    "tensorflow-data-validation==1.16.1",
    "tfx-bsl==1.16.1",
]
SEARCH = ["optuna>=4,<5"]  # compare --search
DEV = [
    *PIPELINE,
    *SEARCH,
    "mypy>=1.10",
    "pytest>=8",
    "pytest-xdist>=3.5",
    "ruff>=0.6",
    "scikit-learn>=1.4",
    "types-PyYAML",
    "types-protobuf>=4.24,<5",
    "types-tqdm",
    "uv>=0.4",
]

setup(
    name="isthmus",
    version="0.1.0",
    description="Multi-domain recommendation: raw logs to served scores",
    license="Apache-2.0",
    python_requires=">=3.11,<3.12",
    packages=find_packages(include=[p + s for p in PACKAGES for s in ("", ".*")]),
    package_data={
        "serving": ["deploy/*", "templates/*"],
        "models": ["experiments/*.yaml", "experiments/days/*.yaml", "templates/*"],
        "pipeline": ["examples/*"],
    },
    install_requires=TRAIN_AND_SERVE,
    extras_require={"pipeline": PIPELINE, "search": SEARCH, "dev": DEV},
    entry_points={
        "console_scripts": [
            "isthmus-preprocess=pipeline.preprocess:main",
            "isthmus-select-samples=pipeline.select_samples:main",
            "isthmus-augment=pipeline.augment:main",
            "isthmus-continual=pipeline.continual:main",
            "isthmus-batch-score=pipeline.batch_score:main",
            "isthmus-train=models.train:main",
            "isthmus-evaluate=models.evaluate:main",
            "isthmus-represent=models.represent:main",
            "isthmus-compare=models.compare:main",
            "isthmus-export=serving.export:main",
            "isthmus-server=serving.server:main",
            "isthmus-show=tfrecords_tools.show:main",
        ]
    },
)
