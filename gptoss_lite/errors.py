"""The errors users see: each says what was wrong with the numbers, and what to do."""


class GptOssLiteError(Exception):
    """Any mistake this package can explain. Catch this one to catch them all."""


class ConfigError(GptOssLiteError, ValueError):
    """A model configuration whose fields contradict each other."""


class ShapeError(GptOssLiteError, ValueError):
    """A tensor or argument of a size or range that a function cannot take."""


class CheckpointError(GptOssLiteError):
    """Weights that are missing, damaged, of another shape, or too large to load."""


class TokenizerError(GptOssLiteError):
    """A tokenizer file that is missing or damaged, or a conversation that cannot be rendered."""


class BackendError(GptOssLiteError, RuntimeError):
    """A fast path that was asked for and cannot run here."""


class MissingExtraError(GptOssLiteError, ImportError):
    """An optional dependency that is not installed; the message names the pip command."""
