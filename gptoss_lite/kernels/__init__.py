"""Faster versions of the plain operations; importing this registers them, the fastest first."""

from gptoss_lite.kernels import native, words

__all__ = ["native", "words"]
