"""The trainer: one loop for all methods, resumable at any step."""

import logging
import math
import pathlib
import resource
import time
from typing import Any

import numpy as np
import tensorflow as tf

from features import encode
from features.dataset import Dataset
from features.schema import ModelSchema
from models import registry
from models.audit import WeightAudit
from models.method import Method
from models.training import (
    durations,
    evaluate,
    events,
    history,
    measure,
    nonfinite,
    profile,
    streams,
)
from models.training import strategy as strategy_lib
from models.training import workdir as workdir_lib
from models.training.checkpoint import Checkpoints, RunState, num_parameters
from models.training.config import RunConfig
from models.training.loop import CallResult, Loop
from models.training.progress import Progress
from models.training.result import (
    Result,
    audit_path,
    is_finished,
    save_matrices,
    scores_path,
)
from models.training.signals import Interrupted, StopRequest
from models.training.summaries import Summaries
from tfrecords_tools import read

SPLITS_MEASURED = ("validation", "test")
# A call is not cut short by a stop request, so it should not last longer than this.
MAX_CALL_SECS = 5.0

_log = logging.getLogger(__name__)


def train(config: RunConfig, workdir: str | pathlib.Path) -> Result:
    """Trains, or goes on, or does nothing for a finished run; returns its result.

    Args:
      config: What to train.  A form other than `mdmt` trains several models.
      workdir: Folder of the run; the same one resumes it, exactly.

    Raises:
      WorkdirError: When the workdir is in use or belongs to another run.
      Interrupted: After SIGTERM or SIGINT, with everything saved.
      NonFiniteLossError: At the first NaN or infinite loss.
    """
    from models.training import forms  # it calls train_one

    workdir = pathlib.Path(workdir)
    dataset = Dataset.open(config.data_dir)
    with workdir_lib.locked(workdir):
        workdir_lib.claim(workdir, workdir_lib.describe(config, dataset))
        if is_finished(workdir):
            return Result.load(workdir)
        if config.form == "mdmt":
            return train_one(config, dataset, workdir)
        return forms.train_family(config, dataset, workdir)


def train_one(config: RunConfig, dataset: Dataset, workdir: pathlib.Path) -> Result:
    """Trains a single model in a workdir that is locked and claimed."""
    strategy_lib.seed_everything(config.seed)
    strategy = strategy_lib.make_strategy(config)
    with strategy.scope(), strategy_lib.quiet():
        trainer = Trainer(config, dataset, workdir)
        try:
            return trainer.run()
        finally:
            trainer.close()


def make_method(config: RunConfig, dataset: Dataset) -> Method:
    """Returns the untrained method of a run, built for its domains and tasks."""
    schema = run_schema(config, dataset)
    cls = registry.method_class(config.method)
    with strategy_lib.precision(config):
        return cls(config.parsed_method_config(), schema)


def run_schema(config: RunConfig, dataset: Dataset) -> ModelSchema:
    """Returns the schema of a run's domains and tasks."""
    return dataset.info.model_schema.select(config.domains, config.tasks)


class Trainer:
    """A single run; use `train` unless you are writing a new kind of run.

    Construct it inside the strategy's scope.

    Attributes:
      method: The method in training.
      state: Where the run stands.
      loop: The traced step function.
    """

    def __init__(self, config: RunConfig, dataset: Dataset, workdir: pathlib.Path):
        self.config = config
        self.dataset = dataset
        self.workdir = workdir
        self._strategy = tf.distribute.get_strategy()
        self.state = RunState()
        self.method = make_method(config, dataset)
        measure.check_metric(
            config.metric, self.method.serving_domains(), self.method.schema.tasks
        )
        self.plans = streams.plan_streams(self.method, dataset, config)
        self._main = streams.main_plan(self.plans)
        self._streams = streams.TrainStreams(
            self.plans, self.method, config, self._strategy, self.state
        )
        self._steps_per_epoch = self._main.steps_per_epoch
        self._events = events.Events(
            self.method, self._strategy, self.state, self._steps
        )
        # An epoch is one pass over the rows, those that events take included.
        self._steps_per_epoch = math.ceil(
            self._main.steps_per_epoch / self._events.batches_per_step
        )
        self.loop = Loop(self.method, self._strategy, jit_compile=config.jit_compile)
        self._scorer = evaluate.Scorer(self.method)
        self._watched = {
            name: evaluate.Scorer(self.method, model)
            for name, model in self.method.watched_models().items()
        }
        self.checkpoints = Checkpoints(
            workdir, self.method, self.state, keep=config.keep_checkpoints
        )
        self._summaries = Summaries(workdir)
        self._history = history.History(workdir)
        self._profiler = profile.StepProfiler(config.profile, workdir)
        self.max_steps: Any = min(
            math.ceil(config.max_epochs * self._steps_per_epoch - 1e-9),
            config.max_steps or math.inf,
        )
        self.eval_steps = self._steps(config.eval_every)
        self.checkpoint_steps = self._steps(config.checkpoint_every)
        self._calls = 0
        self._step_secs = 0.0

    def run(self) -> Result:
        """Trains to the end from wherever the workdir stands."""
        if self.checkpoints.restore():
            _log.info("resuming %s at step %d", self.workdir, self.state.step)
            self._history.cut(self.state.step)
            self._streams.reset()
        else:
            if self.config.init_from:
                self._warm_start()
            self.checkpoints.save()  # a NaN in the first steps is replayed from here
        progress = Progress(
            name=self.workdir.name,
            total=self.max_steps,
            done=self.state.step,
            every_secs=self.config.log_every_secs,
        )
        started = time.monotonic()
        secs_before = self.state.secs
        try:
            with StopRequest() as stop:
                while not self.state.stop_reason:
                    self._after_step(progress)
                    self.state.secs = secs_before + time.monotonic() - started
                    if stop.received is not None and not self.state.stop_reason:
                        raise self._interrupt(stop.received)
                    if not self.state.stop_reason:
                        self._call(progress)
        finally:
            progress.close()
        return self._finish(started - secs_before)

    def _warm_start(self) -> None:
        from models.training import warm_start  # it opens runs, as this one

        # What an earlier model is worth on these rows: a publish gate compares it.
        compared = self.config.compare_with or self.config.init_from
        taken = warm_start.warm_start(
            self.method, self.dataset, compared, field="compare_with"
        )
        scores = self._scorer.score(
            self.dataset, "test", batch_size=self.config.eval_batch_size
        )
        scores.save(scores_path(self.workdir, warm_start.SCORES_BEFORE))
        if compared != self.config.init_from:
            taken = warm_start.warm_start(
                self.method, self.dataset, self.config.init_from
            )
        taken.save(self.workdir)
        _log.info(
            "goes on from %s: %d variables, grown tables %s, new %s",
            taken.workdir,
            taken.restored,
            taken.grown or "none",
            ", ".join(taken.new) or "none",
        )
        for note in taken.notes:
            _log.warning(note)

    def close(self) -> None:
        """Closes files."""
        self._profiler.close()
        self._summaries.close()

    # ------------------------------------------------------------ between calls

    def _after_step(self, progress: Progress) -> None:
        """Does what is due at this step and not yet done: events, evaluation, save."""
        state = self.state
        given = self._events.run_due(self._streams)
        if given:
            self._summaries.write("train", given, state.step)
        at_end = state.step >= self.max_steps
        due = state.step > 0 and (state.step % self.eval_steps == 0 or at_end)
        if due and state.eval_step != state.step:
            self._evaluate(progress)
            patience = self.config.patience
            if patience is not None and state.evals_without_gain >= patience:
                state.stop_reason = f"no gain in {patience} evaluations"
            elif at_end:
                state.stop_reason = "limit of epochs or steps reached"
            self.checkpoints.save()
        elif state.step > 0 and state.step % self.checkpoint_steps == 0:
            self.checkpoints.save()

    def _evaluate(self, progress: Progress) -> None:
        state, metric = self.state, self.config.metric
        scores = self._scorer.score(
            self.dataset, "validation", batch_size=self.config.eval_batch_size
        )
        values = measure.metrics_of(scores).scalars()
        value = values[metric]
        gained = measure.is_better(metric, value, state.best_metric)
        state.eval_step = state.step
        state.evaluations += 1
        state.evals_without_gain = 0 if gained else state.evals_without_gain + 1
        if gained:
            state.best_metric, state.best_step = value, state.step
            self.checkpoints.save_best()
        own = {**self.method.scalars(), **self._watched_metrics()}
        self._summaries.write("eval", {**values, **own}, state.step)
        for name, kept in self.method.audit_tables().items():
            self._summaries.write_histogram(name, kept.sample(), state.step)
        self._history.add(
            {
                "step": state.step,
                "epoch": self._epochs(state.step),
                "rows": state.rows,
                "metric": value,
                "is_best": gained,
                "train_loss": self._mean_loss(),
                "train_rows_per_sec": self._rows_per_sec(),
                "validation": values,
                "method": own,
            }
        )
        state.loss_sum, state.loss_steps = 0.0, 0
        if value is None:
            _log.warning("%s is undefined on the validation rows", metric)
        progress.evaluated(state.step, metric, value, " (best)" if gained else "")

    def _watched_metrics(self) -> dict[str, float | None]:
        """Returns the validation metrics of the method's other models."""
        found: dict[str, float | None] = {}
        for name, scorer in self._watched.items():
            scores = scorer.score(
                self.dataset, "validation", batch_size=self.config.eval_batch_size
            )
            values = measure.metrics_of(scores).scalars()
            found |= {f"{name}/{metric}": value for metric, value in values.items()}
        return found

    def _interrupt(self, signal_number: int) -> Interrupted:
        self.checkpoints.save()
        return Interrupted(
            f"stopped by signal {signal_number} at step {self.state.step}; saved in "
            f"{self.workdir}. Start the same command again to go on.",
            signal_number,
        )

    # ------------------------------------------------------------------- a call

    def _call(self, progress: Progress) -> None:
        """Does steps up to the next thing that is due."""
        steps = self._profiler.before(self.state.step, self._steps_to_do())
        started = time.monotonic()
        result = self._run_steps(steps)
        secs = time.monotonic() - started
        rows = int(result.domain_rows.sum())
        self.state.rows += rows
        self._calls += 1
        if self._calls > 1:  # the first call compiles
            self.state.timed_rows += rows
            self.state.timed_secs += secs
            self._step_secs = secs / max(1, result.steps)
        self._profiler.after(self.state.step, rows=rows, secs=secs)
        if not result.is_finite:
            raise self._explain_non_finite()
        if "loss" in result.metrics:
            self.state.loss_sum += result.metrics["loss"] * result.steps
            self.state.loss_steps += result.steps
        rate = rows / secs
        self._log_call(result, rate)
        progress.update(
            self.state.step, loss=result.metrics.get("loss"), rows_per_sec=rate
        )

    def _run_steps(self, steps: int) -> CallResult:
        try:
            result = self.loop.run(self._streams.iterators(), steps)
        except tf.errors.OutOfRangeError as error:
            raise evaluate.CountError(
                f"{self.dataset.data_dir} must have the rows that dataset.json counts; "
                f"a stream ended early after step {self.state.step}. Run python -m "
                "tfrecords_tools.verify."
            ) from error
        except tf.errors.OpError as error:
            found = self._explain(error)
            if found is None:
                raise
            raise found from error
        self.state.step += result.steps
        self._streams.advance(result.steps)
        return result

    def _explain(self, error: tf.errors.OpError) -> Exception | None:
        """Returns what a stream raised, in its own words; None: it was no stream."""
        for plan in self.plans.values():
            if plan.vectors is not None and plan.vectors.error is not None:
                return plan.vectors.error
            if isinstance(
                error, (tf.errors.DataLossError, tf.errors.InvalidArgumentError)
            ):
                found = read.explain_data_loss(plan.dataset, plan.stream.split, error)
                if not isinstance(found, ValueError) or "passes its" not in str(found):
                    return found
        return None

    def _steps_to_do(self) -> int:
        step = self.state.step
        limits = [
            self.config.steps_per_call,
            self._streams.remaining(),
            self.max_steps - step,
            self.eval_steps - step % self.eval_steps,
            self.checkpoint_steps - step % self.checkpoint_steps,
            self._events.steps_to_next(),
        ]
        if self._step_secs:
            limits.append(max(1, int(MAX_CALL_SECS / self._step_secs)))
        return min(limits)

    def _explain_non_finite(self) -> nonfinite.NonFiniteLossError:
        """Goes back to the last checkpoint and up to the step before, to look."""
        bad_step = self.state.step
        self.checkpoints.restore()
        self._streams.reset()
        while self.state.step < bad_step - 1:
            self._events.run_due(self._streams)
            steps = min(self._steps_to_do(), bad_step - 1 - self.state.step)
            self._run_steps(steps)
        self._events.run_due(self._streams)
        batches = {
            name: self._first_replica(batch)
            for name, batch in self._streams.draw().items()
        }
        return nonfinite.explain(self.method, batches, bad_step)

    def _first_replica(self, batch: Any) -> Any:
        """Returns the whole batch, also when its parts lie on several devices."""
        return tf.nest.map_structure(
            lambda *parts: tf.concat(parts, axis=0),
            *self._strategy.experimental_local_results(batch),
        )

    def _log_call(self, result: CallResult, rate: float) -> None:
        rows = max(1, int(result.domain_rows.sum()))
        shares = {
            f"row_share/{name}": float(count) / rows
            for name, count in zip(
                self.method.schema.domains, result.domain_rows, strict=True
            )
        }
        rates = {
            f"learning_rate/{name}": float(optimizer.learning_rate)
            for name, optimizer in self.method.optimizers.items()
        }
        values = {**result.metrics, **shares, **rates, "rows_per_sec": rate}
        self._summaries.write("train", values, self.state.step)

    # ------------------------------------------------------------------ the end

    def _texts(self, kept: WeightAudit) -> list[str] | None:
        """Returns what the ids of the audited feature mean; None without one."""
        if kept.by_value is None:
            return None
        info = self.dataset.info
        ids = np.arange(kept.by_value.shape[1])
        name = self.method.config.audit_feature
        return encode.texts_of_ids(info.spec, info.fitted, name, ids)

    def _finish(self, started: float) -> Result:
        """Restores the best weights, measures both splits, writes the result."""
        for name, kept in self.method.audit_tables().items():
            kept.write_csv(audit_path(self.workdir, name), self._texts(kept))
        self.checkpoints.restore_best()
        save_matrices(self.workdir, self.method.matrices())  # of what is scored
        tables = {}
        for split in SPLITS_MEASURED:
            scores = self._scorer.score(
                self.dataset, split, batch_size=self.config.eval_batch_size
            )
            scores.save(scores_path(self.workdir, split))
            tables[split] = measure.metrics_of(scores).to_json()
        state = self.state
        result = Result(
            workdir=self.workdir,
            metrics=tables,
            metric=self.config.metric,
            best_metric=state.best_metric,
            best_step=state.best_step,
            best_epoch=self._epochs(state.best_step),
            steps=state.step,
            epochs=self._epochs(state.step),
            stop_reason=state.stop_reason,
            train_rows_per_sec=self._rows_per_sec(),
            secs=time.monotonic() - started,
            num_parameters=num_parameters(self.method.model.trainable_variables),
            # Linux counts ru_maxrss in KiB.
            peak_rss_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        )
        result.save()
        return result

    def _mean_loss(self) -> float | None:
        """Returns the mean training loss since the last evaluation."""
        steps = self.state.loss_steps
        # Rounded: a resumed run adds the same steps up in other calls.
        return float(f"{self.state.loss_sum / steps:.7g}") if steps else None

    def _rows_per_sec(self) -> float | None:
        secs = self.state.timed_secs
        return self.state.timed_rows / secs if secs > 0 else None

    def _epochs(self, step: int) -> float:
        return step / self._steps_per_epoch

    def _steps(self, duration: int | str) -> int:
        return durations.to_steps(
            duration,
            rows_per_step=self._main.batch_size,
            steps_per_epoch=self._steps_per_epoch,
        )
