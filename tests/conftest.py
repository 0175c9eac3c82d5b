"""Settings of the unit tests: one thread, and property tests that repeat."""

import torch
from hypothesis import HealthCheck, settings

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
