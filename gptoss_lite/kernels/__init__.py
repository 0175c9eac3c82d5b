"""Faster versions of the plain operations; importing this registers them, the fastest first."""

from gptoss_lite.kernels import compiled, decode, gpu, grouped, native, sdpa, step, words

__all__ = ["compiled", "decode", "gpu", "grouped", "native", "sdpa", "step", "words"]
