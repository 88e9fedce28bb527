"""The executor that gives one callback group a thread of its own, with real timers and topics."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import rclpy
from rclpy.context import Context
from rclpy.node import Node
from std_msgs.msg import Header

from lowlat_seg_ros.ros.executor import OwnThreadExecutor, OwnThreadGroup

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


def test_group_has_one_thread_and_others_run_where_it_spins(node: Node) -> None:
    group, own, others, enough = GROUP(), [], [], threading.Event()

    def count(threads: list[int]) -> None:
        threads.append(threading.get_ident())
        if min(len(own), len(others)) >= 20:
            enough.set()

    node.create_timer(0.001, lambda: count(own), callback_group=group)
    node.create_timer(0.001, lambda: count(others))
    executor = OwnThreadExecutor(context=node.context)
    executor.add_node(node)
    spin_until(executor, enough)
    assert executor.join(10.0)
    assert set(others) == {threading.get_ident()}
    assert len(set(own)) == 1
    assert not set(own) & set(others)


def test_groups_of_the_own_thread_take_turns(node: Node) -> None:
    """Each is ready again at once, as cameras are whose images come faster than they are done."""
    turns, enough, groups = [], threading.Event(), {name: GROUP() for name in "abc"}

    def take_turn(name: str) -> None:
        others = [group for other, group in groups.items() if other != name]
        while not (all(group.waits for group in others) or enough.is_set()):
            time.sleep(0.001)  # until both are handed over
        turns.append(name)
        if len(turns) >= 33:
            enough.set()

    for name, group in groups.items():
        node.create_timer(1e-4, partial(take_turn, name), callback_group=group)
    executor = OwnThreadExecutor(context=node.context)
    executor.add_node(node)
    spin_until(executor, enough)
    assert executor.join(10.0)
    rounds = [turns[start : start + 3] for start in range(3, 33, 3)]  # after all are under way
    assert all(sorted(names) == ["a", "b", "c"] for names in rounds), turns


def test_spinning_rests_while_messages_wait_for_the_own_thread(node: Node) -> None:
    """Else it takes the interpreter from the callbacks: frames then take seconds."""
    ran, enough, looks = [], threading.Event(), []

    class Counting(OwnThreadGroup):
        def can_execute(self, entity: Any) -> bool:
            looks.append(entity)
            return super().can_execute(entity)

    def take(name: str, _: Header) -> None:
        time.sleep(0.05)  # the others' messages wait meanwhile
        ran.append(name)
        publishers[name].publish(Header())
        if len(ran) >= 12:
            enough.set()

    publishers = {name: node.create_publisher(Header, name, 1) for name in "abc"}
    for name in publishers:
        node.create_subscription(Header, name, partial(take, name), 1, callback_group=Counting())
    executor = OwnThreadExecutor(context=node.context)
    executor.add_node(node)
    for publisher in publishers.values():
        publisher.publish(Header())
    spin_until(executor, enough)
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

    node.create_timer(0.001, busy, callback_group=group)
    node.create_timer(0.005, other)
    executor = OwnThreadExecutor(context=node.context)
    executor.add_node(node)
    spin_until(executor, done)
    assert executor.join(30.0)
    assert late[0] is False
    assert runs[:5] == [False] * 5


@pytest.mark.parametrize("own", [True, False])
def test_exception_of_a_callback_comes_out_of_spin(node: Node, own: bool) -> None:
    group = GROUP()

    def fail() -> None:
        raise ArithmeticError("of the callback")

    node.create_timer(0.001, fail, callback_group=group if own else None)
    executor = OwnThreadExecutor(context=node.context)
    executor.add_node(node)
    with pytest.raises(ArithmeticError, match="of the callback"):
        executor.spin()
    assert executor.join(10.0)


def test_join_tells_that_a_callback_does_not_end(node: Node) -> None:
    group, begun, release = GROUP(), threading.Event(), threading.Event()

    def hang() -> None:
        begun.set()
        release.wait(30.0)

    node.create_timer(0.001, hang, callback_group=group)
    executor = OwnThreadExecutor(context=node.context)
    executor.add_node(node)
    spin_until(executor, begun)
    assert not executor.join(0.05)
    release.set()
    assert executor.join(10.0)
