"""How a node runs: rclpy's lifecycle node and its executor, with what the camera's node needs.

Transitions that fail are logged and end no process, and image callbacks have a thread of their own.
"""

from __future__ import annotations

import queue
import threading
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from typing import Any

from rclpy.callback_groups import MutuallyExclusiveCallbackGroup
from rclpy.context import Context
from rclpy.exceptions import InvalidHandle
from rclpy.executors import (
    ConditionReachedException,
    Executor,
    ExternalShutdownException,
    ShutdownException,
    TimeoutException,
)
from rclpy.guard_condition import GuardCondition
from rclpy.impl.implementation_singleton import rclpy_implementation as _rclpy
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.node import Node
from rclpy.task import Task


class ManagedNode(LifecycleNode, ABC):
    """Takes the steps :meth:`configure`, :meth:`activate`, ... when their transitions are called.

    A step that raises one of ``expected`` (what a user can have got wrong, so that the message says
    all) leaves the node in the state before it. Any other exception is a fault: it is logged with
    its traceback and everything is released, so that the node is unconfigured again.
    """

    expected: tuple[type[Exception], ...] = ()

    def __init__(self, name: str, **options: Any) -> None:
        super().__init__(name, **options)
        self._problem = ""
        # rclpy lets the error of a transition that there is not end the executor, so the process.
        service = self._service_change_state
        service.callback = partial(self._change_state, service.callback)

    @property
    def state(self) -> str:
        """Label of the state or of the transition that the node is in: ``inactive``, ..."""
        return str(self._state_machine.current_state[1])

    @property
    def problem(self) -> str:
        """Why the newest transition failed; empty if it did not."""
        return self._problem

    @abstractmethod
    def configure(self) -> None:
        """Unconfigured -> inactive: load and prepare."""

    @abstractmethod
    def activate(self) -> None:
        """Inactive -> active: begin to work."""

    @abstractmethod
    def deactivate(self) -> None:
        """Active -> inactive: end it."""

    @abstractmethod
    def cleanup(self) -> None:
        """Inactive -> unconfigured: release what :meth:`configure` made."""

    @abstractmethod
    def release(self) -> bool:
        """Release everything, in any state; False if something did not end in time."""

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        return self._take("configure", self.configure)

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        return self._take("activate", self.activate)

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        return self._take("deactivate", self.deactivate)

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        return self._take("clean up", self.cleanup)

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        return self._take("shut down", self._release_all)

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Unconfigured again, or finalized if something runs on that should not."""
        problem = self._problem
        result = self._take("recover", self._release_all)
        self._problem = " ".join(filter(None, [problem, self._problem]))
        return result

    def _release_all(self) -> None:
        if not self.release():
            raise TimeoutError("a frame or Sh does not end; end the process")

    def _take(self, what: str, step: Callable[[], None]) -> TransitionCallbackReturn:
        self._problem = ""
        try:
            step()
        except self.expected as error:
            self._problem = f"Cannot {what}: {error}"
            self.get_logger().error(self._problem)
            return TransitionCallbackReturn.FAILURE
        except Exception as error:
            # rclpy would swallow it; whatever it is, the node must stay manageable.
            self._problem = f"Cannot {what}: {type(error).__name__}: {error}"
            if self.context.ok():  # else it was asked to end meanwhile
                trace = "".join(traceback.format_exception(error))
                self.get_logger().error(f"{self._problem}\n{trace}")
            return TransitionCallbackReturn.ERROR
        return TransitionCallbackReturn.SUCCESS

    def _change_state(self, change: Callable[[Any, Any], Any], request: Any, response: Any) -> Any:
        before = self.state
        try:
            return change(request, response)
        except _rclpy.RCLError:
            asked = request.transition.label or request.transition.id
            self.get_logger().warning(f"There is no transition {asked} from the state {before}")
            response.success = False
            return response


class OwnThreadGroup(MutuallyExclusiveCallbackGroup):
    """Subscriptions, and their events, for the own thread of an :class:`OwnThreadExecutor`.

    Their callbacks take a message and its info. ``waits``: one of them has been handed over and is
    not done. None of the others is waited for then: Fast DDS takes a message that waits for a sign
    of the subscription's events, too, and would not let the waiting thread rest.
    """

    waits = False

    def can_execute(self, entity: Any) -> bool:
        """Not where the executor spins: it would be woken by each image, and hold it up."""
        return False


class OwnThreadExecutor(Executor):
    """Runs the subscriptions of every :class:`OwnThreadGroup` in one thread, and all other
    callbacks where it spins.

    So a long image callback delays neither diagnostics, parameters nor ``/clock``, and they do not
    delay it. rclpy's MultiThreadedExecutor would do that too, but runs successive image callbacks
    in different threads, and each thread that uses PyTorch keeps a team of OpenMP threads.

    The groups are served in the order in which they became ready: with a group for each camera,
    the one that has waited longest comes next, and a camera waits for no more than one image of
    each other one. A message is taken from the middleware only when it is its group's turn, so that
    it is the newest.

    A third thread waits for the groups. rclpy's own wait, over all that a node has, takes 0.7 ms
    longer to hand an image over, most of it in Python and so at the image's cost.

    An exception of a callback is raised by :meth:`spin`.
    """

    def __init__(self, *, context: Context | None = None) -> None:
        super().__init__(context=context)
        self._own_guard = GuardCondition(None, None, context=self._context)
        self._work: queue.SimpleQueue[tuple[OwnThreadGroup, Callable[[], None]] | None] = (
            queue.SimpleQueue()
        )
        self._ended = False
        self._failure: BaseException | None = None
        # Daemons, so that a callback that does not end cannot keep the process alive.
        self._thread = threading.Thread(target=self._loop, name="camera", daemon=True)
        self._thread.start()
        threading.Thread(target=self._wait_for_groups, name="images", daemon=True).start()

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
            try:
                task, _, _ = self.wait_for_ready_callbacks(timeout_sec, None, self._has_failed)
            except _rclpy.RCLError as error:
                if self._context.ok():
                    raise
                # It was shut down between rclpy's own look and its wait.
                raise ExternalShutdownException from error
            self._run(task)
        if self._failure is not None:
            raise self._failure

    def join(self, timeout_s: float) -> bool:
        """Let the own thread end after what it runs now; False if that takes longer."""
        self._ended = True
        self._own_guard.trigger()
        self._work.put(None)
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _has_failed(self) -> bool:
        return self._failure is not None

    def _loop(self) -> None:
        while (handed_over := self._work.get()) is not None and not self._ended:
            group, work = handed_over
            with self._failures():
                work()
            group.waits = False
            self._own_guard.trigger()  # to wait for the group again

    def _wait_for_groups(self) -> None:
        while not self._ended and self._context.ok() and not self._has_failed():
            with self._failures():
                self._wait()

    @contextmanager
    def _failures(self) -> Iterator[None]:
        """What fails here is raised by :meth:`spin`, unless a shutdown made it fail."""
        try:
            yield
        except BaseException as error:
            if self._context.ok():
                self._failure = error
                super().wake()

    def _wait(self) -> None:
        """Until something of a group happens; it is handed over."""
        with ExitStack() as in_use:
            in_use.enter_context(self._context.handle)
            in_use.enter_context(self._own_guard.handle)

            def ours(entities: Callable[[Node], Any], handle: Callable[[Any], Any]) -> list[Any]:
                found = []
                for entity in (entity for node in self.get_nodes() for entity in entities(node)):
                    group = entity.callback_group
                    if isinstance(group, OwnThreadGroup) and not group.waits:
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
            waiting.wait(-1)
            happened = [event for event in events if event.is_ready(waiting)]
            ready = [
                entity
                for entity, place in zip(subscriptions, places, strict=True)
                if waiting.is_ready("subscription", place)
            ]
        for event in happened:
            self._hand_over(event, partial(self._happened, event))
        for subscription in ready:
            self._hand_over(subscription, partial(_take, subscription))

    def _hand_over(self, entity: Any, work: Callable[[], None]) -> None:
        """What a group that waits already has besides is found again when it is waited for."""
        group = entity.callback_group
        if not group.waits:
            group.waits = True
            self._work.put((group, work))

    def _happened(self, event: Any) -> None:
        self._run(Task(event.execute, (event.take_data(),)))

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
