"""The tests of solvers run tables that are unstable, on purpose: what ``sample`` says of them is tested elsewhere."""

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "/solvers/" in item.path.as_posix():
            item.add_marker(pytest.mark.filterwarnings("ignore::scoresde.UnstableSamplerWarning"))
