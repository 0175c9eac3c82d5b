"""Let Ctrl-C end the command quietly while torch is imported, which takes a second.

This is imported before torch is. In a library or a notebook Ctrl-C stays as it is.
"""

import os
import signal
import sys
from pathlib import Path
from types import FrameType

STOPPED = "\ngptoss-lite: stopped."
INTERRUPTED = 130  # the exit status of a command that Ctrl-C ended


def _end(signum: int, frame: FrameType | None) -> None:
    os.write(2, f"{STOPPED}\n".encode())
    os._exit(INTERRUPTED)


def is_command() -> bool:
    """Is the package imported to run the script, or for `python -m gptoss_lite`?"""
    name = (getattr(sys, "argv", None) or [""])[0]  # "-m" until Python has found what to run
    return name == "-m" or Path(name).stem == "gptoss-lite"


def as_usual() -> None:
    """Let Ctrl-C raise KeyboardInterrupt again."""
    if signal.getsignal(signal.SIGINT) is _end:
        signal.signal(signal.SIGINT, signal.default_int_handler)


if is_command() and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, _end)
