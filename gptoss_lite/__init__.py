"""From GPT-2 to gpt-oss, one switch at a time: the package behind the book."""

from gptoss_lite import account, kernels, mxfp4
from gptoss_lite.account import fit
from gptoss_lite.cache import KVCache
from gptoss_lite.checkpoint import load, save_checkpoint
from gptoss_lite.config import ModelConfig, MoEConfig, YarnConfig
from gptoss_lite.dispatch import backends, use_backend
from gptoss_lite.generate import chat, generate
from gptoss_lite.ladder import LADDER, show_step
from gptoss_lite.model import Transformer
from gptoss_lite.presets import PRESETS
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
    "kernels",
    "load",
    "load_tokenizer",
    "mxfp4",
    "save_checkpoint",
    "show_step",
    "trace",
    "use_backend",
]
