"""An executor that gives the image callbacks a thread of their own."""

from __future__ import annotations

import queue
import threading
from typing import Any

from rclpy.callback_groups import MutuallyExclusiveCallbackGroup
from rclpy.context import Context
from rclpy.executors import ConditionReachedException, Executor, ShutdownException, TimeoutException
from rclpy.task import Task


class OwnThreadGroup(MutuallyExclusiveCallbackGroup):
    """Callbacks for the own thread of an :class:`OwnThreadExecutor`, such as those of a camera.

    ``waits``: one of them has been handed over and is not done. None of the others is waited for
    then: Fast DDS takes a message that waits for a sign of the subscription's events, too, and
    would not let the spinning thread rest.
    """

    waits = False

    def can_execute(self, entity: Any) -> bool:
        """Whether to wait for ``entity``, and to run what it has."""
        return not self.waits and bool(super().can_execute(entity))


class OwnThreadExecutor(Executor):
    """Runs the callbacks of every :class:`OwnThreadGroup` in one thread, all others where it spins.

    So a long image callback delays neither diagnostics, parameters nor ``/clock``, and they do not
    delay it. rclpy's MultiThreadedExecutor would do that too, but runs successive image callbacks
    in different threads, and each thread that uses PyTorch keeps a team of OpenMP threads.

    The groups are served in the order in which they became ready: with a group for each camera,
    the one that has waited longest comes next, and a camera waits for no more than one image of
    each other one. A message is taken from the middleware only when its group is next, so that it
    is the newest. Of one group for all, those that wait would come in the order of their creation.

    An exception of a callback is raised by :meth:`spin`.
    """

    def __init__(self, *, context: Context | None = None) -> None:
        super().__init__(context=context)
        self._work: queue.SimpleQueue[tuple[Task, OwnThreadGroup] | None] = queue.SimpleQueue()
        # What waits or runs in the own thread: tasks are offered again until they have begun.
        self._handed_over: set[Task] = set()
        self._failure: BaseException | None = None
        # A daemon, so that a callback that does not end cannot keep the process alive.
        self._thread = threading.Thread(target=self._loop, name="camera", daemon=True)
        self._thread.start()

    def spin_once(self, timeout_sec: float | None = None) -> None:
        """Wait for one callback and run it, or hand it to the own thread."""
        try:
            task, entity, _ = self.wait_for_ready_callbacks(timeout_sec, None, self._has_failed)
        except (ShutdownException, TimeoutException, ConditionReachedException):
            pass
        else:
            if entity is None or not isinstance(entity.callback_group, OwnThreadGroup):
                self._run(task)
            elif task not in self._handed_over:
                self._handed_over.add(task)
                entity.callback_group.waits = True
                self._work.put((task, entity.callback_group))
        if self._failure is not None:
            raise self._failure

    def join(self, timeout_s: float) -> bool:
        """Let the own thread end after what it runs now; False if that takes longer."""
        self._work.put(None)
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _has_failed(self) -> bool:
        return self._failure is not None

    def _loop(self) -> None:
        while (handed_over := self._work.get()) is not None:
            task, group = handed_over
            self._run(task)
            self._handed_over.discard(task)
            del task, handed_over  # they hold the image
            group.waits = False
            self.wake()  # to wait for the group again, or to raise what failed

    def _run(self, task: Task) -> None:
        task()
        if task.done() and task.exception() is not None:
            self._failure = task.exception()
