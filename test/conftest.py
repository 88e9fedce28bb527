"""Settings of every test run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest


@pytest.fixture(scope="session", autouse=True)
def ros_domain() -> Iterator[None]:
    """Give this run a ROS domain of its own, so that runs side by side do not hear each other.

    The domain stays reserved among the runs on this machine until the run ends. Processes that
    tests start inherit it. Nothing to do where there is no ROS.
    """
    with ExitStack() as stack:
        try:
            from domain_coordinator import domain_id
        except ImportError:
            yield
            return
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        patch.setenv("ROS_DOMAIN_ID", str(stack.enter_context(domain_id())))
        patch.setenv("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
        yield
