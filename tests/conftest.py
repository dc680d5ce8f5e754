"""What holds for every test: repeatable properties, one thread a worker, and global state left as it was.

The check of the global state wraps the two calls that run a test's own code, its fixtures and its body, because
pytest-randomly reseeds Python's and NumPy's generators between them: a fixture that looked before and after a test
would see that reseeding instead of the test.
"""

from __future__ import annotations

import os
from collections.abc import Generator

IN_WORKER = "PYTEST_XDIST_WORKER" in os.environ
if IN_WORKER:
    # Before the numerical libraries load, and for the processes that tests start.
    os.environ["OMP_NUM_THREADS"] = "1"

import pytest  # noqa: E402
import torch  # noqa: E402
from global_state import changes, global_state  # noqa: E402
from hypothesis import HealthCheck, settings  # noqa: E402

if IN_WORKER:
    torch.set_num_threads(1)

# No test depends on the machine's speed, so neither deadlines nor Hypothesis' complaint of slow data generation.
settings.register_profile("repeatable", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("nightly", settings.get_profile("repeatable"), derandomize=False, max_examples=1000)
settings.load_profile("repeatable")  # the other one: pytest --hypothesis-profile=nightly


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Generator[None, object, object]:
    before = global_state()
    result = yield
    if message := changes(before):
        pytest.fail(f"{pyfuncitem.nodeid} {message}", pytrace=False)
    return result


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(fixturedef: pytest.FixtureDef[object]) -> Generator[None, object, object]:
    before = global_state()
    result = yield
    if message := changes(before):
        pytest.fail(f"fixture {fixturedef.argname} {message}", pytrace=False)
    return result
