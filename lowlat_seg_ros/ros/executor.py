"""An executor that gives the image callbacks a thread of their own."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack, suppress
from typing import Any

from rclpy.callback_groups import MutuallyExclusiveCallbackGroup
from rclpy.context import Context
from rclpy.exceptions import InvalidHandle
from rclpy.executors import (
    ConditionReachedException,
    Executor,
    ShutdownException,
    TimeoutException,
)
from rclpy.guard_condition import GuardCondition
from rclpy.impl.implementation_singleton import rclpy_implementation as _rclpy
from rclpy.node import Node
from rclpy.task import Task


class OwnThreadGroup(MutuallyExclusiveCallbackGroup):
    """Subscriptions, and their events, for the own thread of an :class:`OwnThreadExecutor`.

    Their callbacks take a message and its info.
    """

    def can_execute(self, entity: Any) -> bool:
        """Not where the executor spins: it would be woken by each image, and hold it up."""
        return False


class OwnThreadExecutor(Executor):
    """Runs the subscriptions of every :class:`OwnThreadGroup` in one thread, which waits for them
    itself, and all other callbacks where it spins.

    So a long image callback delays neither diagnostics, parameters nor ``/clock``, and they do not
    delay it. rclpy's MultiThreadedExecutor would do that too, but runs successive image callbacks
    in different threads, and each thread that uses PyTorch keeps a team of OpenMP threads.

    Subscriptions are served in the order in which they became ready: of several cameras, the one
    that has waited longest comes next, and a camera waits for no more than one image of each other
    one. A message is taken from the middleware only when it is its subscription's turn, so that it
    is the newest.

    An exception of a callback is raised by :meth:`spin`.
    """

    def __init__(self, *, context: Context | None = None) -> None:
        super().__init__(context=context)
        self._own_guard = GuardCondition(None, None, context=self._context)
        self._ended = False
        self._failure: BaseException | None = None
        # A daemon, so that a callback that does not end cannot keep the process alive.
        self._thread = threading.Thread(target=self._loop, name="camera", daemon=True)
        self._thread.start()

    def add_node(self, node: Node) -> bool:
        """As the base class says."""
        added = bool(super().add_node(node))
        self.wake()
        return added

    def wake(self) -> None:
        """Look again at what there is to wait for, in both threads."""
        super().wake()
        self._own_guard.trigger()

    def spin_once(self, timeout_sec: float | None = None) -> None:
        """Wait for one callback that is not the own thread's, and run it."""
        with suppress(ShutdownException, TimeoutException, ConditionReachedException):
            task, _, _ = self.wait_for_ready_callbacks(timeout_sec, None, self._has_failed)
            self._run(task)
        if self._failure is not None:
            raise self._failure

    def join(self, timeout_s: float) -> bool:
        """Let the own thread end after what it runs now; False if that takes longer."""
        self._ended = True
        self._own_guard.trigger()
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _has_failed(self) -> bool:
        return self._failure is not None

    def _loop(self) -> None:
        ready: deque[Any] = deque()  # subscriptions, in the order in which they became it
        try:
            while not (self._ended or self._has_failed()):
                self._wait(ready)
                if ready and not self._ended:
                    _take(ready.popleft())
        except BaseException as error:
            if not self._context.ok():
                return  # it was shut down, which ends every wait
            self._failure = error
        super().wake()  # to raise what failed

    def _wait(self, ready: deque[Any]) -> None:
        """Until a subscription is ready, unless one is already; callbacks of events run here."""
        with ExitStack() as in_use:
            in_use.enter_context(self._context.handle)
            in_use.enter_context(self._own_guard.handle)

            def ours(entities: Callable[[Node], Any], handle: Callable[[Any], Any]) -> list[Any]:
                found = []
                for entity in (entity for node in self.get_nodes() for entity in entities(node)):
                    if isinstance(entity.callback_group, OwnThreadGroup):
                        with suppress(InvalidHandle):  # it was just destroyed
                            in_use.enter_context(handle(entity))
                            found.append(entity)
                return found

            subscriptions = ours(lambda node: node.subscriptions, lambda entity: entity.handle)
            events = ours(lambda node: node.waitables, lambda entity: entity)
            counts = (len(subscriptions), 1, 0, 0, 0, len(events))
            waiting = _rclpy.WaitSet(*counts, self._context.handle)
            waiting.clear_entities()
            waiting.add_guard_condition(self._own_guard.handle)
            places = [waiting.add_subscription(entity.handle) for entity in subscriptions]
            for event in events:
                event.add_to_wait_set(waiting)
            waiting.wait(0 if ready else -1)
            ready += [
                entity
                for entity, place in zip(subscriptions, places, strict=True)
                if waiting.is_ready("subscription", place) and entity not in ready
            ]
            happened = [(event, event.take_data()) for event in events if event.is_ready(waiting)]
        for event, data in happened:
            self._run(Task(event.execute, (data,)))

    def _run(self, task: Task) -> None:
        task()
        if task.done() and task.exception() is not None:
            self._failure = task.exception()


def _take(subscription: Any) -> None:
    """Run the callback of ``subscription`` with its newest message, if it has one."""
    try:
        with subscription.handle:
            taken = subscription.handle.take_message(subscription.msg_type, subscription.raw)
    except InvalidHandle:  # it was destroyed meanwhile
        return
    if taken is not None:
        subscription.callback(*taken)
