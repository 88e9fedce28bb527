"""rclpy's lifecycle node, with failures that are logged and end no process."""

from __future__ import annotations

import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from typing import Any

from rclpy.impl.implementation_singleton import rclpy_implementation
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn


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
        except rclpy_implementation.RCLError:
            asked = request.transition.label or request.transition.id
            self.get_logger().warning(f"There is no transition {asked} from the state {before}")
            response.success = False
            return response
