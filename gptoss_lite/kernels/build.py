"""Build the C files of `csrc` with the system's compiler, on first use, and load them.

Why C and not numba: macOS with its command line tools and nearly every Linux have a C compiler,
while numba would be one more dependency. And the table lookup that makes this fast is one line of
C intrinsics that a reader can follow, where numba needs LLVM assembly written by hand.

The library goes into `~/.cache/gptoss_lite` (or `$XDG_CACHE_HOME/gptoss_lite`), once for each
version, compiler and CPU. Set `GPTOSS_LITE_NATIVE=0` to do without.
"""

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import threading
from functools import cache
from pathlib import Path
from typing import Any

import torch

from gptoss_lite.errors import BackendError

OFF_VARIABLE = "GPTOSS_LITE_NATIVE"  # "0" turns this backend off
FOLDER = Path(__file__).with_name("csrc")
COMPILERS = ("cc", "gcc", "clang")
FLAGS = ("-O3", "-std=gnu11", "-shared", "-fPIC", "-pthread")  # never -ffast-math
CPU_FLAGS = (("-march=native",), ("-mcpu=native",), ())  # not every compiler knows the first
COMPILE_TIMEOUT_S = 60
BYTES_PER_THREAD = 2**17  # a second thread costs about as much as reading this

_LOCK = threading.Lock()


class _Built:
    """The library, or the reason why there is none; found out once, on first use."""

    def __init__(self) -> None:
        self.library: Any = None
        self.problem: str | None = None
        self.done = False

    def library_or_problem(self) -> tuple[Any, str | None]:
        if not self.done:
            with _LOCK:
                if not self.done:
                    try:
                        self.library = _declare(_build())
                    except BackendError as problem:
                        self.problem = str(problem)
                    except OSError as problem:
                        self.problem = f"the C files could not be built or loaded: {problem}"
                    self.done = True
        return self.library, self.problem


_BUILT = _Built()


def missing() -> str | None:
    """Say why the C code cannot be used on this machine; the first call builds it."""
    if os.environ.get(OFF_VARIABLE) == "0":
        return f"{OFF_VARIABLE}=0 turns it off"
    return _BUILT.library_or_problem()[1]


def _build() -> ctypes.CDLL:
    """Load the library from the user's cache, or build it."""
    if os.name != "posix" or sys.byteorder != "little":
        raise BackendError(f"the C code is not made for {platform.system()} {platform.machine()}")
    compiler = _compiler()
    key = _key(compiler)
    folder = _cache_folder()
    try:
        for kept in folder.glob(f"{key}-*.so"):
            if _digest(kept.read_bytes()) == kept.stem.removeprefix(f"{key}-"):
                return ctypes.CDLL(str(kept))
    except OSError:
        pass  # a cache that cannot be read, or not be run from, is as good as an empty one
    with tempfile.TemporaryDirectory(prefix="gptoss_lite-") as work:
        built = Path(work) / "native.so"
        _compile(compiler, built)
        kept = _keep(built.read_bytes(), folder, key)
        try:
            return ctypes.CDLL(str(built))
        except OSError:  # nothing may be run from the temporary folder
            if kept is None:
                raise
            return ctypes.CDLL(str(kept))


def _compiler_or_none() -> str | None:
    return next(filter(None, map(shutil.which, COMPILERS)), None)


def _compiler() -> str:
    if (compiler := _compiler_or_none()) is None:
        raise BackendError("there is no C compiler (cc, gcc or clang) to build the C files with")
    return compiler


def _cache_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()
    return Path(base) / "gptoss_lite"


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def _key(compiler: str) -> str:
    """Name what a library depends on: the source, the compiler, its flags and the CPU."""
    stamp = Path(compiler).resolve().stat()
    sources = [file.read_bytes() for file in sorted(FOLDER.iterdir()) if file.is_file()]
    parts = (sources, FLAGS, compiler, stamp.st_size, stamp.st_mtime_ns)
    return "native-" + _digest(repr((*parts, _cpu())).encode())


def _cpu() -> str:
    """Name the CPU and what it can do; a home may be shared by different machines."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        wanted = ("model name", "flags", "Features", "CPU implementer", "CPU part")
        lines = info.read_text(encoding="utf-8", errors="replace").splitlines()
        return "\n".join(sorted({line for line in lines if line.startswith(wanted)}))
    if sys.platform == "darwin":
        asked = ["sysctl", "-n", "machdep.cpu.brand_string"]
        return subprocess.run(asked, capture_output=True, text=True, check=False).stdout
    return platform.machine() + platform.processor()


def _compile(compiler: str, target: Path, more_flags: tuple[str, ...] = ()) -> None:
    """Compile the sources.

    Raises:
        BackendError: no set of flags worked; with the first line of the compiler's last message.
    """
    message = ""
    for cpu in CPU_FLAGS:
        command = [
            compiler,
            *FLAGS,
            *cpu,
            *more_flags,
            "-o",
            str(target),
            str(FOLDER / "native.c"),
            "-lm",
        ]
        try:
            ran = subprocess.run(
                command, capture_output=True, text=True, timeout=COMPILE_TIMEOUT_S, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as problem:
            raise BackendError(f"{compiler} could not build the C files: {problem}") from None
        if ran.returncode == 0 and target.is_file():
            return
        message = next(iter(ran.stderr.strip().splitlines()), f"exit status {ran.returncode}")
    raise BackendError(f"{compiler} could not build the C files: {message}")


def _keep(content: bytes, folder: Path, key: str) -> Path | None:
    """Put the library into the cache, whole or not at all; its name says what it must hold."""
    target = folder / f"{key}-{_digest(content)}.so"
    part = folder / f"{key}.{os.getpid()}.part"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.glob(f"{key}-*.so"):
            old.unlink(missing_ok=True)  # it was damaged, or it would have been loaded
        try:
            part.write_bytes(content)
            part.replace(target)
        finally:
            part.unlink(missing_ok=True)
    except OSError:
        return None  # a read-only home or a full disk: each process builds its own, in a second
    return target


def _declare(library: ctypes.CDLL) -> ctypes.CDLL:
    pointer, number, flag = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
    threads = (flag, pointer)
    library.dense_matvec.argtypes = (pointer, pointer, number, pointer, *threads)
    library.packed_matvec.argtypes = (
        *(pointer,) * 5,
        number,
        flag,
        flag,
        pointer,
        *threads,
    )
    library.unpack.argtypes = (pointer, number, pointer, number, pointer, *threads)
    library.attend.argtypes = (pointer, *threads)
    library.next_logits.argtypes = (*(pointer,) * 6, *threads)
    return library


def library() -> Any:
    """Return the loaded library; `missing` must have found nothing."""
    loaded, problem = _BUILT.library_or_problem()
    assert problem is None, problem
    return loaded


@cache
def _parallel() -> int | None:
    """Return the address of the function that runs work on torch's own threads, if it has one."""
    try:
        function = ctypes.CDLL(torch._C.__file__).GOMP_parallel  # of the OpenMP that torch loaded
    except (OSError, AttributeError):
        return None
    return ctypes.cast(function, ctypes.c_void_p).value


def threads(n_bytes: int) -> tuple[int, int | None]:
    """Return how many threads reading so many bytes is worth, and how to get them."""
    return max(1, min(torch.get_num_threads(), n_bytes // BYTES_PER_THREAD)), _parallel()
