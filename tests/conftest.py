"""Settings of the unit tests: one thread, property tests that repeat, the plain operations."""

from collections.abc import Iterator

import pytest
import torch
from hypothesis import HealthCheck, settings

from gptoss_lite import use_backend

torch.set_num_threads(1)  # the models are tiny: more threads only wait for each other

settings.register_profile(
    "small",
    max_examples=30,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("small")


@pytest.fixture
def plain() -> Iterator[None]:
    """Compute with the specification, whatever fast versions this machine has."""
    use_backend("plain")
    yield
    use_backend("auto")
