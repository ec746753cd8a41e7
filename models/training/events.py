"""Periodic events of a method: exactly on their steps, once each, resumable."""

from collections.abc import Mapping
from typing import Any

import tensorflow as tf

from models.method import Method
from models.training.checkpoint import RunState
from models.training.streams import TrainStreams


class Events:
    """Runs a method's events between calls."""

    def __init__(
        self, method: Method, strategy: tf.distribute.Strategy, state: RunState
    ):
        self._strategy = strategy
        self._state = state
        self._events = method.periodic_events()
        replicas = strategy.num_replicas_in_sync
        for event in self._events:
            if event.every_steps < 1:
                raise ValueError(
                    f"PeriodicEvent.every_steps must be at least 1; got "
                    f"{event.every_steps} (event {event.name!r})."
                )
            if event.draws and replicas > 1:
                raise ValueError(
                    f"RunConfig.strategy must be one_device for {method.name}: its "
                    f"event {event.name!r} draws batches; got {replicas} devices."
                )

    def steps_to_next(self) -> float:
        """Returns the number of steps to the next event; inf without events."""
        left = (e.every_steps - self._state.step % e.every_steps for e in self._events)
        return min(left, default=float("inf"))

    def run_due(self, streams: TrainStreams) -> dict[str, float]:
        """Runs, in the method's order, the events due at this step and not yet done.

        Returns the scalars they gave, as "<event>/<name>".
        """
        step = self._state.step
        given: dict[str, float] = {}
        for event in self._events:
            done = self._state.events_done.get(event.name, 0)
            if step == 0 or step % event.every_steps or done == step:
                continue
            if event.draws:
                values = event.run(streams.draw_one)
            else:
                arguments = (streams.draw(),) if event.takes_batch else ()
                values = self._run(event.run, arguments)
            self._state.events_done[event.name] = step
            for key, value in (values or {}).items():
                given[f"{event.name}/{key}"] = float(value)
        return given

    def _run(self, run: Any, arguments: tuple[Any, ...]) -> Mapping[str, Any] | None:
        """Calls the event; one that takes a batch runs on every replica's part."""
        if not arguments or self._strategy.num_replicas_in_sync == 1:
            return run(*arguments)
        values = self._strategy.run(run, arguments)
        return {
            name: self._strategy.reduce("sum", value, axis=None)
            for name, value in (values or {}).items()
        }
