import pytest


@pytest.fixture(autouse=True)
def each_device(device) -> None:
    """Every test here runs on each device, but for those that are marked ``cpu``."""
