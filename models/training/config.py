"""`RunConfig`: everything that decides a training run besides the data."""

from typing import Annotated, Any, Literal

import pydantic
from pydantic import Field, PositiveFloat

from features.config import Config
from models import registry
from models.training import durations

Form = Literal["mdmt", "mtl", "mdl", "isolated"]
Duration = Annotated[
    int | str,
    Field(description="steps, or text: '200 steps', '5e6 rows', '0.5 epochs'"),
]

# Keys that change neither the weights nor what is measured: a resumed run may have
# others, and a finished one is found again under any of them.
FREE_KEYS = frozenset(
    {
        "data_dir",
        "eval_batch_size",
        "steps_per_call",
        "checkpoint_every",
        "keep_checkpoints",
        "log_every_secs",
        "profile",
    }
)


class ProfileConfig(Config):
    """Which steps to trace with `tf.profiler`; none when `num_steps` is 0."""

    start_step: int = Field(20, ge=1, description="past compilation and warm-up")
    num_steps: int = Field(0, ge=0)


class RunConfig(Config):
    """One training run, or one family of runs (see `form`).

    Forms: `mdmt` one model over all domains and tasks; `mtl` one model per domain
    with all tasks; `mdl` one model per task with all domains; `isolated` one model
    per (domain, task).  With `domains` or `tasks` only those take part.

    Batches mix domains as the rows do.  With `one_domain_batches` each holds rows of
    one domain: an epoch is a shuffled list with ceil(n_d / batch_size) entries for a
    domain of n_d rows, so it has more steps, the last of every domain filled up;
    durations in rows count full batches.  It wants one device and a method that
    trains on one stream.
    """

    method: str
    method_config: dict[str, Any] = {}
    data_dir: str
    form: Form = "mdmt"
    domains: list[str] = []
    tasks: list[str] = []
    train_days: tuple[int, int] | None = Field(
        None, description="first and last day (YYYYMMDD) of the training rows"
    )
    train_domains: list[str] = Field(
        [], description="only their training rows are read; the model is of `domains`"
    )
    extra_rows: dict[str, PositiveFloat] = Field(
        {},
        description="folder below the data folder (streams/gst) -> its rows a step, "
        "beside those, as a share of batch_size",
    )
    init_from: str = Field(
        "", description="workdir of a run to go on from, with its optimiser state"
    )
    compare_with: str = Field(
        "", description="workdir of the run to score before it; empty = init_from"
    )
    seed: int = Field(0, ge=0, lt=2**31)

    batch_size: int = Field(4096, ge=1, description="rows a step, over all devices")
    one_domain_batches: bool = Field(
        False, description="each batch of one domain, domains in a shuffled order"
    )
    eval_batch_size: int = Field(16384, ge=1)
    max_epochs: float = Field(50, gt=0)
    max_steps: int | None = Field(None, ge=1, description="the earlier limit counts")
    eval_every: Duration = "1 epochs"
    patience: int | None = Field(
        10, ge=1, description="evaluations without gain before the run stops"
    )
    metric: str = "mean_domain_auc"

    strategy: Literal["one_device", "mirrored"] = "one_device"
    num_devices: int = Field(0, ge=0, description="for mirrored; 0 = all there are")
    mixed_precision: bool = False
    jit_compile: bool = False
    steps_per_call: int = Field(32, ge=1, description="at most")

    checkpoint_every: Duration = "1000 steps"
    keep_checkpoints: int = Field(2, ge=1)
    log_every_secs: float = Field(10.0, gt=0, description="plain log lines")
    profile: ProfileConfig = ProfileConfig()

    @pydantic.field_validator("eval_every", "checkpoint_every")
    @classmethod
    def _duration(cls, value: int | str) -> int | str:
        durations.parse_duration(value)
        return value

    @pydantic.model_validator(mode="after")
    def _check(self) -> "RunConfig":
        if self.init_from and self.form != "mdmt":
            raise ValueError(
                f"init_from is for form=mdmt, one model; got form={self.form}"
            )
        if self.compare_with and not self.init_from:
            raise ValueError(
                "compare_with is for runs with init_from, which keep an earlier run's "
                f"scores on their test rows; got {self.compare_with} without init_from"
            )
        if self.one_domain_batches and self.strategy != "one_device":
            raise ValueError(
                "one_domain_batches must be false with several devices; got "
                f"strategy={self.strategy}. Leave it out, or train on one_device"
            )
        if self.num_devices and self.strategy != "mirrored":
            raise ValueError("num_devices is for strategy=mirrored")
        if self.num_devices and self.batch_size % self.num_devices:
            raise ValueError(
                f"batch_size must be a multiple of num_devices={self.num_devices}; "
                f"got {self.batch_size}"
            )
        return self

    def parsed_method_config(self) -> Any:
        """Returns `method_config` as the method's own Config class.

        Raises:
          LookupError: For an unknown method.
          ConfigError: For an unknown or impossible key.
        """
        cls = registry.method_class(self.method)
        return cls.Config.parse(self.method_config, where="method_config")

    def resolved(self) -> "RunConfig":
        """Returns the same run with every default of the method written out."""
        values = self.parsed_method_config().model_dump(mode="json")
        return self.model_copy(update={"method_config": values})
