"""From GPT-2 to gpt-oss, one switch at a time: the package behind the book.

The figures (`gl.viz`) and the page widgets (`gl.widgets`) are imported on first use.
"""

from importlib import import_module
from types import ModuleType

from gptoss_lite import account, mxfp4
from gptoss_lite import kernels as kernels  # registers the fast versions
from gptoss_lite.account import fit
from gptoss_lite.cache import KVCache
from gptoss_lite.checkpoint import load, save_checkpoint
from gptoss_lite.config import ModelConfig, MoEConfig, YarnConfig
from gptoss_lite.dispatch import backends, use_backend
from gptoss_lite.generate import chat, generate, generate_batch
from gptoss_lite.ladder import LADDER, show_ledger, show_step
from gptoss_lite.model import Transformer
from gptoss_lite.presets import PRESETS
from gptoss_lite.recording import record
from gptoss_lite.tokenizer import load_tokenizer
from gptoss_lite.trace import trace

__version__ = "0.1.0"

__all__ = [
    "LADDER",
    "PRESETS",
    "KVCache",
    "MoEConfig",
    "ModelConfig",
    "Transformer",
    "YarnConfig",
    "account",
    "backends",
    "chat",
    "fit",
    "generate",
    "generate_batch",
    "load",
    "load_tokenizer",
    "mxfp4",
    "record",
    "save_checkpoint",
    "show_ledger",
    "show_step",
    "trace",
    "use_backend",
]


def __getattr__(name: str) -> ModuleType:
    if name in ("viz", "widgets"):  # matplotlib and anywidget take longer to import than the rest
        return import_module(f"gptoss_lite.{name}")
    raise AttributeError(f"module 'gptoss_lite' has no attribute {name!r}")
