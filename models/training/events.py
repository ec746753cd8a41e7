"""Periodic events of a method: exactly on their steps, once each, resumable."""

from collections.abc import Callable, Mapping
from typing import Any

import tensorflow as tf

from models.method import Method, PeriodicEvent
from models.training.checkpoint import RunState
from models.training.streams import TrainStreams


class Events:
    """Runs a method's events between calls; `to_steps` gives a duration in steps."""

    def __init__(
        self,
        method: Method,
        strategy: tf.distribute.Strategy,
        state: RunState,
        to_steps: Callable[[int | str], int],
    ):
        self._strategy = strategy
        self._state = state
        self._events: list[tuple[int, PeriodicEvent]] = []
        replicas = strategy.num_replicas_in_sync
        for event in method.periodic_events():
            try:
                every = to_steps(event.every_steps)
            except ValueError as error:
                raise ValueError(
                    f"PeriodicEvent.every_steps {error}; got {event.every_steps!r} "
                    f"(event {event.name!r})."
                ) from None
            self._events.append((every, event))
            if event.draws and replicas > 1:
                raise ValueError(
                    f"RunConfig.strategy must be one_device for {method.name}: its "
                    f"event {event.name!r} draws batches; got {replicas} devices."
                )

    @property
    def batches_per_step(self) -> float:
        """Batches of a stream that go with a step, those that events take included."""
        return 1.0 + sum(1.0 / every for every, e in self._events if e.takes_batch)

    def steps_to_next(self) -> float:
        """Returns the number of steps to the next event; inf without events."""
        left = (every - self._state.step % every for every, _ in self._events)
        return min(left, default=float("inf"))

    def run_due(self, streams: TrainStreams) -> dict[str, float]:
        """Runs, in the method's order, the events due at this step and not yet done.

        Returns the scalars they gave, as "<event>/<name>".
        """
        step = self._state.step
        given: dict[str, float] = {}
        for every, event in self._events:
            done = self._state.events_done.get(event.name, 0)
            if step == 0 or step % every or done == step:
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
