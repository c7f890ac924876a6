"""The components of all registries, one after the other."""

from __future__ import annotations

import importlib.util

import pytest

from parts.every_component import PACKAGES, SMALL


@pytest.fixture(params=SMALL, ids="-".join)
def component(request) -> tuple[str, str]:
    package = PACKAGES.get(request.param[1])
    if package and importlib.util.find_spec(package) is None:
        pytest.skip(f"{'-'.join(request.param)} needs the package {package}")
    return request.param
