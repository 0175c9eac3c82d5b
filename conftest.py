"""Test set-up shared by the unit tests, the doctests and the notebooks."""

import importlib.util
import os
from typing import Any

import torch

from tests import typecheck  # noqa: F401 - loaded here, so that jaxtyping's hook finds it

# Tests never wait for a network: what they need is in the repository or in a package.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

collect_ignore_glob = []
if importlib.util.find_spec("triton") is None:
    # Doctest collection imports every module; these need Triton, which only CUDA builds bring.
    collect_ignore_glob.append("gptoss_lite/kernels/triton*.py")
elif not torch.cuda.is_available():
    # Triton looks at this when it is imported. Its kernels then run on the CPU.
    os.environ.setdefault("TRITON_INTERPRET", "1")


def _mend_nbval() -> None:
    """Mend two defects of nbval 0.11.

    It runs cells without history, and IPython then ignores the trailing `;` that hides
    a value, so such a cell fails. And it waits 5 seconds, hard-coded, for the messages
    that follow a cell, which a busy machine can exceed.
    """
    try:
        from nbval import kernel, plugin
    except ImportError:
        return

    def execute_cell_input(self: Any, cell_input: str, allow_stdin: bool | None = None) -> str:
        return self.kc.execute(
            cell_input, store_history=True, allow_stdin=allow_stdin, stop_on_error=False
        )

    original = plugin.IPyNbCell.__init__

    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        self.output_timeout = 60

    kernel.RunningKernel.execute_cell_input = execute_cell_input
    plugin.IPyNbCell.__init__ = init


_mend_nbval()
