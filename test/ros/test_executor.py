"""The executor that gives one callback group a thread of its own, with real topics and timers."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import rclpy
from rclpy.context import Context
from rclpy.event_handler import SubscriptionEventCallbacks
from rclpy.node import Node
from std_msgs.msg import Header

from lowlat_seg_ros.ros.runtime import OwnThreadExecutor, OwnThreadGroup

GROUP = OwnThreadGroup


@pytest.fixture
def node() -> Iterator[Node]:
    context = Context()
    rclpy.init(context=context)
    yield rclpy.create_node("callbacks", context=context)
    context.try_shutdown()


def spin_until(executor: OwnThreadExecutor, event: threading.Event) -> None:
    while not event.is_set():  # the test's own timeout bounds this
        executor.spin_once(0.1)


class Echo:
    """A topic of ``node`` whose messages come one after another; ``callback`` gets each."""

    def __init__(self, node: Node, group: OwnThreadGroup, callback: Callable[[], None]) -> None:
        name = f"echo_{len(list(node.publishers))}"
        self._callback, self._publisher = callback, node.create_publisher(Header, name, 1)
        node.create_subscription(Header, name, self._receive, 1, callback_group=group)
        self._publisher.publish(Header())

    def _receive(self, _: Header, info: dict[str, Any]) -> None:
        assert info["received_timestamp"]
        self._publisher.publish(Header())
        self._callback()


def test_group_has_one_thread_and_others_run_where_it_spins(node: Node) -> None:
    group, own, others, enough = GROUP(), [], [], threading.Event()

    def count(threads: list[int]) -> None:
        threads.append(threading.get_ident())
        if min(len(own), len(others)) >= 20:
            enough.set()

    Echo(node, group, lambda: count(own))
    node.create_timer(0.001, lambda: count(others))
    executor = OwnThreadExecutor(context=node.context)
    executor.add_node(node)
    spin_until(executor, enough)
    assert executor.join(10.0)
    assert set(others) == {threading.get_ident()}
    assert len(set(own)) == 1
    assert not set(own) & set(others)


def test_subscriptions_of_the_own_thread_take_turns(node: Node) -> None:
    """Each is ready again at once, as cameras are whose images come faster than they are done."""
    turns, enough = [], threading.Event()

    def take_turn(name: str) -> None:
        turns.append(name)
        if len(turns) >= 36:
            enough.set()

    for name in "abc":
        Echo(node, GROUP(), partial(take_turn, name))
    executor = OwnThreadExecutor(context=node.context)
    executor.add_node(node)
    spin_until(executor, enough)
    assert executor.join(10.0)
    rounds = [turns[start : start + 3] for start in range(3, 36, 3)]  # after all are under way
    assert all(sorted(names) == ["a", "b", "c"] for names in rounds), turns


def test_spinning_rests_while_messages_come_and_wait_for_the_own_thread(node: Node) -> None:
    """Else it takes the interpreter from the callbacks: frames then take seconds."""
    ran, enough, looks = [], threading.Event(), []

    class Counting(OwnThreadGroup):
        def can_execute(self, entity: Any) -> bool:
            looks.append(entity)
            return super().can_execute(entity)

    def busy() -> None:
        time.sleep(0.05)  # the others' messages wait meanwhile
        ran.append(1)
        if len(ran) >= 12:
            enough.set()

    for _ in range(3):
        Echo(node, Counting(), busy)
    executor = OwnThreadExecutor(context=node.context)
    executor.add_node(node)
    while not enough.is_set():
        executor.spin_once(10.0)
    assert executor.join(10.0)
    assert len(looks) < 200 * len(ran)  # thousands for each where it goes round and round


def test_others_go_on_while_the_group_is_busy(node: Node) -> None:
    group, done, runs = GROUP(), threading.Event(), []
    release, late = threading.Event(), []

    def busy() -> None:
        late.append(not release.wait(30.0))
        done.set()

    def other() -> None:
        runs.append(done.is_set())
        if len(runs) >= 5:
            release.set()

    Echo(node, group, busy)
    node.create_timer(0.005, other)
    executor = OwnThreadExecutor(context=node.context)
    executor.add_node(node)
    spin_until(executor, done)
    assert executor.join(30.0)
    assert late[0] is False
    assert runs[:5] == [False] * 5


@pytest.mark.parametrize("own", [True, False])
def test_exception_of_a_callback_comes_out_of_spin(node: Node, own: bool) -> None:
    def fail() -> None:
        raise ArithmeticError("of the callback")

    if own:
        Echo(node, GROUP(), fail)
    else:
        node.create_timer(0.001, fail)
    executor = OwnThreadExecutor(context=node.context)
    executor.add_node(node)
    with pytest.raises(ArithmeticError, match="of the callback"):
        executor.spin()
    assert executor.join(10.0)


def test_subscriptions_come_and_go_while_it_waits(node: Node) -> None:
    """Also the events of one belong to the own thread."""
    executor = OwnThreadExecutor(context=node.context)
    executor.add_node(node)
    publisher, spun = node.create_publisher(Header, "topic", 1), threading.Event()
    spinner = threading.Thread(target=spin_until, args=(executor, spun))
    spinner.start()
    for _ in range(3):
        came, threads = threading.Event(), set[str]()

        def receive(*_: Any, came: threading.Event = came, threads: set[str] = threads) -> None:
            threads.add(threading.current_thread().name)
            came.set()

        def matched(_: Any, threads: set[str] = threads) -> None:
            threads.add(threading.current_thread().name)

        events = SubscriptionEventCallbacks(matched=matched)
        subscription = node.create_subscription(
            Header, "topic", lambda m, info, receive=receive: receive(m, info), 1,
            callback_group=GROUP(), event_callbacks=events,
        )  # fmt: skip
        while not came.wait(0.05):
            publisher.publish(Header())
        node.destroy_subscription(subscription)
        assert threads == {"camera"}
    spun.set()
    spinner.join(10.0)
    assert executor.join(10.0)


def test_join_tells_that_a_callback_does_not_end(node: Node) -> None:
    group, begun, release = GROUP(), threading.Event(), threading.Event()

    def hang() -> None:
        begun.set()
        release.wait(30.0)

    Echo(node, group, hang)
    executor = OwnThreadExecutor(context=node.context)
    executor.add_node(node)
    spin_until(executor, begun)
    assert not executor.join(0.05)
    release.set()
    assert executor.join(10.0)
