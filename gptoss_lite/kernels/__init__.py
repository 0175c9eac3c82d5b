"""Faster versions of the plain operations; importing this registers them."""

from gptoss_lite.kernels import words

__all__ = ["words"]
