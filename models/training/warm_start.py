"""Goes on from another run: its weights, state and optimiser slots, in grown tables.

The day after has a longer vocabulary, so its tables are longer: ids never change their
meaning, so the rows of old ids are copied and those of new ids stay as initialised.
"""

import dataclasses
import json
import pathlib

import tensorflow as tf

from features.dataset import Dataset, DatasetInfo
from models.layers.grown_tables import GrownTables
from models.method import Method
from models.optimizers.base import RowOptimizer
from models.state import GoesOn
from models.training import restore, trainer
from models.training import workdir as workdir_lib
from models.training.checkpoint import Checkpoints, RunState

REPORT_FILE = "warm_start.json"
SCORES_BEFORE = "test_before"  # of the earlier model on the new test rows


class WarmStartError(ValueError):
    """A run that this one cannot go on from."""


@dataclasses.dataclass(frozen=True)
class WarmStart:
    """What was taken over.

    Attributes:
      workdir: The earlier run.
      restored: Variables copied whole, optimiser slots among them.
      grown: Table -> rows before and now, where they differ.
      new: Names of variables that the earlier run does not have.
      notes: What the method's own state has to tell, such as a changed source model.
    """

    workdir: str
    restored: int
    grown: dict[str, tuple[int, int]]
    new: list[str]
    notes: list[str]

    def save(self, workdir: pathlib.Path) -> None:
        """Writes the report into a workdir."""
        text = json.dumps(dataclasses.asdict(self), indent=2)
        (workdir / REPORT_FILE).write_text(text, "utf-8")


def check_continues(old: DatasetInfo, new: DatasetInfo, where: str) -> None:
    """Refuses a data set whose ids do not mean what those of an earlier one do.

    Args:
      old: The earlier data set.
      new: Prepared with `--previous_data_dir` of it, or the same.
      where: Owner named in the error.

    Raises:
      WarmStartError: For other domains, tasks or numeric parameters, or a vocabulary
        that does not begin with the earlier one.
    """
    found = [
        f"domains {new.fitted.domains}, before {old.fitted.domains}"
        for _ in range(new.fitted.domains != old.fitted.domains)
    ]
    if new.spec.task_names != old.spec.task_names:
        found.append(f"tasks {new.spec.task_names}, before {old.spec.task_names}")
    for name, vocab in old.fitted.vocabs.items():
        grown = new.fitted.vocabs.get(name)
        if grown is None or not grown.array[: len(vocab.array)].equals(vocab.array):
            found.append(f"vocabulary {name!r} does not begin with the earlier one")
    for name, params in old.fitted.numeric.items():
        if new.fitted.numeric.get(name) != params:
            found.append(f"parameters of {name!r} differ")
    if found:
        raise WarmStartError(
            f"{where} must be of a data set that this one continues; got "
            f"{'; '.join(found)}. Prepare the data with --previous_data_dir."
        )


def warm_start(
    method: Method,
    dataset: Dataset,
    workdir: str | pathlib.Path,
    *,
    field: str = "init_from",
) -> WarmStart:
    """Puts the last state of a finished run into an untrained method.

    Args:
      method: Of the same config but for what the data decides.  Untrained, or with the
        state of a run that this one went on from: every value of that is replaced.
      dataset: What it will be trained on.
      workdir: The earlier run.
      field: Of `RunConfig`, named in errors.

    Raises:
      WarmStartError: When the run is unfinished, of another method, of other domains
        in a stream, or of data that this data set does not continue.
      GrowthError: When a variable has another shape, or a table shrank.
    """
    workdir = pathlib.Path(workdir)
    owner = f"RunConfig.{field}"
    old, info = _load(workdir, owner)
    check_continues(info, dataset.info, f"{owner} {workdir}")
    if type(old) is not type(method):
        raise WarmStartError(
            f"{owner} must be a run of {type(method).__name__}; got one of "
            f"{type(old).__name__} ({workdir})."
        )
    _check_streams(old, method, f"{owner} {workdir}")
    tables = GrownTables(old.model, method.model, owner="RunConfig.init_from")
    for part in (*old.extra_state().values(), *method.extra_state().values()):
        if isinstance(part, tf.Module):
            tables.add(part)
    pairs = _pairs(old, method)
    for before, now in pairs:
        tables.copy(before, now)
        giver, taker = _owner(old, before), _owner(method, now)
        if giver is None or taker is None:
            continue
        slots = taker.slots(now)
        for name, slot in giver.slots(before).items():
            if name in slots:
                tables.copy(slot, slots[name], like=(before, now))
    for name, optimizer in method.optimizers.items():
        if name in old.optimizers:
            optimizer.iterations.assign(old.optimizers[name].iterations)
    taken = {now.ref() for _, now in pairs}
    new = [v.name for v in _variables(method) if v.ref() not in taken]
    notes = _go_on(old, method)
    return WarmStart(str(workdir), tables.copied, tables.grown, new, notes)


def _check_streams(old: Method, new: Method, where: str) -> None:
    """Raises where a stream is of other domains.

    Weights may lie by a stream's domains: their shapes would not tell.
    """
    before, now = old.streams(), new.streams()
    for name in before.keys() & now.keys():
        if before[name].domains != now[name].domains:
            raise WarmStartError(
                f"{where} must train on the same domains; stream "
                f"{name!r} has {now[name].domains}, before {before[name].domains}. "
                "Give this run the method_config of the earlier one."
            )


def _load(workdir: pathlib.Path, owner: str) -> tuple[Method, DatasetInfo]:
    """Returns a run's method as the run ended, and its data set."""
    if not (workdir / workdir_lib.CONFIG_FILE).exists():
        raise WarmStartError(f"{owner} must be the workdir of a run; got {workdir}.")
    config = restore.run_config(workdir)
    dataset = Dataset.open(config.data_dir)
    method = trainer.make_method(config, dataset)
    if not Checkpoints(workdir, method, RunState(), keep=1).restore():
        raise WarmStartError(
            f"{owner} must be a run with a checkpoint; {workdir} has none."
        )
    return method, dataset.info


def _variables(method: Method) -> list[tf.Variable]:
    """Returns the variables of the model and of the method's own state, in order."""
    own = [
        variable
        for _, part in sorted(method.extra_state().items())
        for variable in (
            [part] if isinstance(part, tf.Variable) else getattr(part, "variables", ())
        )
    ]
    seen = dict.fromkeys(v.ref() for v in (*method.model.variables, *own))
    return [reference.deref() for reference in seen]


def _go_on(old: Method, new: Method) -> list[str]:
    """Takes over the state that is in no variable; returns what there is to tell."""
    before = old.extra_state()
    told = [
        part.go_on_from(before[name])
        for name, part in sorted(new.extra_state().items())
        if isinstance(part, GoesOn) and name in before
    ]
    return [text for text in told if text]


def _pairs(old: Method, new: Method) -> list[tuple[tf.Variable, tf.Variable]]:
    """Returns the variables that belong together, by place."""
    before, now = _variables(old), _variables(new)
    kinds = [[(_plain(v.name), len(v.shape)) for v in part] for part in (before, now)]
    if kinds[0] != kinds[1]:
        odd = [name for name, _ in set(kinds[0]) ^ set(kinds[1])]
        raise WarmStartError(
            "RunConfig.init_from must be a run with the same model; got "
            f"{len(before)} variables for {len(now)}"
            f"{', such as ' + ', '.join(sorted(odd)[:4]) if odd else ''}. Give this "
            "run the method_config of the earlier one."
        )
    return list(zip(before, now, strict=True))


def _plain(name: str) -> str:
    """Returns a variable's own name: Keras numbers the layers of a second model on."""
    return name.rsplit("/", 1)[-1]


def _owner(method: Method, variable: tf.Variable) -> RowOptimizer | None:
    for optimizer in method.optimizers.values():
        if any(v is variable for v in optimizer.model_variables):
            return optimizer
    return None
