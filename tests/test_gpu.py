"""What the GPU's backends ask of a machine and of a call, on GPUs that are only pretended."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from gptoss_lite import checkpoint
from gptoss_lite.kernels import gpu
from gptoss_lite.kernels.native import experts_too_small
from gptoss_lite.moe import ExpertLinear, route

NEW, T4, PASCAL = (9, 0), (7, 5), (6, 1)


class Machine:
    """A machine with Triton, a compiler, headers and GPUs of these compute capabilities."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.gpus: list[tuple[int, int]] = [NEW]
        self.programs = {"gcc"}
        patch.delenv("CC", raising=False)
        patch.setattr(gpu, "interpreted", lambda: False)
        patch.setattr(gpu, "find_spec", lambda name: object())
        patch.setattr(gpu.shutil, "which", lambda name: name if name in self.programs else None)
        patch.setattr(torch.cuda, "is_available", lambda: bool(self.gpus))
        patch.setattr(torch.cuda, "device_count", lambda: len(self.gpus))
        patch.setattr(torch.cuda, "get_device_capability", lambda i: self.gpus[i])

    def lacks(self) -> str | None:
        gpu.missing.cache_clear()
        gpu.capability_of.cache_clear()
        return gpu.missing()


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    yield Machine(monkeypatch)
    monkeypatch.undo()
    gpu.missing.cache_clear()
    gpu.capability_of.cache_clear()


def test_what_a_machine_lacks(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Each reason alone, so that the plain version takes over instead of a failing launch."""
    assert machine.lacks() is None
    machine.gpus = [PASCAL, NEW]  # the other one can be used
    assert machine.lacks() is None
    machine.gpus = [PASCAL]
    assert machine.lacks() == "this GPU (compute capability 6.1) is too old: Triton needs 7.5"
    machine.gpus = [T4]
    assert machine.lacks() is None
    assert gpu.capability_of(torch.device("cpu")) > NEW  # the interpreter, beside a real GPU
    machine.programs = set()
    assert machine.lacks() == "there is no C compiler (gcc or clang), which Triton needs"
    monkeypatch.setenv("CC", "/opt/cc")
    machine.programs = {"/opt/cc"}
    assert machine.lacks() is None
    monkeypatch.setattr(gpu.sysconfig, "get_paths", lambda: {"include": str(tmp_path)})
    assert machine.lacks() == "Python's C headers, which Triton needs, are not installed"
    machine.gpus = []
    assert machine.lacks() == "no CUDA device"
    monkeypatch.setattr(gpu, "find_spec", lambda name: None)
    assert machine.lacks() == "triton is not installed"


@pytest.fixture
def on_a(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setattr(gpu, "interpreted", lambda: True)  # the CPU plays the GPU
    return monkeypatch


@pytest.mark.parametrize(
    ("capability", "dtype", "width", "reason"),
    [
        (NEW, torch.bfloat16, 128, None),
        (NEW, torch.float32, 128, None),
        (NEW, torch.bfloat16, 129, "a head of 129 numbers is wider than 128"),
        (T4, torch.float16, 128, None),
        (T4, torch.float32, 64, None),
        (T4, torch.float32, 65, "a head of 65 numbers is wider than 64"),
        (T4, torch.bfloat16, 64, "this GPU has no units for bfloat16: load the model with "
         "dtype=torch.float16"),
        (PASCAL, torch.float32, 64, "this GPU (compute capability 6.1) is too old: Triton needs "
         "7.5"),
        (NEW, torch.float64, 64, "it does not compute in torch.float64"),
    ],
)  # fmt: skip
def test_what_a_gpu_cannot_take(
    on_a: pytest.MonkeyPatch,
    capability: tuple[int, int],
    dtype: torch.dtype,
    width: int,
    reason: str | None,
) -> None:
    on_a.setattr(gpu, "capability_of", lambda device: capability)
    q, k = torch.zeros(1, 4, 3, width, dtype=dtype), torch.zeros(1, 2, 5, width, dtype=dtype)
    assert gpu.why_not_attend(q, k, k.clone(), None, None) == reason


def test_experts_on_a_gpu_build_no_c_code() -> None:
    """Their device is looked at before anybody asks for a compiler, packed or not."""
    with torch.device("meta"):
        x, up, down = torch.zeros(1, 8), ExpertLinear(4, 8, 6, False), ExpertLinear(4, 3, 8, False)
        weights, ids = route(torch.zeros(1, 4), 2)
    reason = experts_too_small(x, weights, ids, up, down, torch.nn.functional.silu)
    assert reason == "the matrix is on meta, and this is for the CPU"


def test_what_an_earlier_model_left_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch keeps freed memory for itself; the driver calls it taken."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (2_000, 16_000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 13_900)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 100)
    assert checkpoint.available_memory(torch.device("cuda")) == (15_800, 16_000)
