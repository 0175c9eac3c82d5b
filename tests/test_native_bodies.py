"""Each body of vectors.h as a program of its own: on an emulated CPU, and with memory checked."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from gptoss_lite.kernels import build
from tests.test_native import BODIES

CHECK = Path(__file__).with_name("body_check.c")
FLAGS = ("-std=gnu11", f"-I{build.FOLDER}")
ARM_COMPILER, EMULATORS = "aarch64-linux-gnu-gcc", ("qemu-aarch64", "qemu-aarch64-static")
NEON = 1  # of vectors.h


def compiled(compiler: str, target: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    command = [compiler, *FLAGS, *flags, "-o", str(target), str(CHECK), "-lm"]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def body_that_passed(*command: str) -> int:
    """Run the program; return the number of its body."""
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    said = re.fullmatch(r"body (\d): (\d+) compared, 0 wrong\n", ran.stdout)
    assert said is not None, f"{ran.stdout[-300:]}{ran.stderr[:3_000]}"
    assert ran.returncode == 0
    assert int(said[2]) > 15_000
    return int(said[1])


@pytest.mark.parametrize("name", list(BODIES))
def test_no_body_reads_past_its_memory(name: str, tmp_path: Path) -> None:
    """Arrays end where their data ends, and the compiler checks every access."""
    if reason := build.missing():
        pytest.skip(reason)
    compiler, target = build._compiler(), tmp_path / "check"
    checks = "-O1", "-march=native", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"
    built = compiled(compiler, target, *checks, *BODIES[name])
    if built.returncode:
        plain = compiled(compiler, target, *checks[:2], *BODIES[name])
        assert plain.returncode == 0, plain.stderr
        pytest.skip(f"{compiler} has no checks of memory: {built.stderr.strip()[:200]}")
    body_that_passed(str(target))


@pytest.mark.parametrize("level", ["-O0", "-O3"])
def test_the_neon_body_on_an_emulated_cpu(level: str, tmp_path: Path) -> None:
    emulator = next(filter(None, map(shutil.which, EMULATORS)), None)
    if emulator is None or shutil.which(ARM_COMPILER) is None:
        pytest.skip(f"it takes {ARM_COMPILER} and {EMULATORS[0]}")
    target = tmp_path / "check"
    built = compiled(ARM_COMPILER, target, level, "-static")
    assert built.returncode == 0, built.stderr
    assert body_that_passed(emulator, str(target)) == NEON
