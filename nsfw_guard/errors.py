"""The errors of nsfw_guard: each message says what was given, what was expected and what to type."""


class GuardError(Exception):
    """Base of every error that nsfw_guard raises on purpose."""


class ImageError(GuardError, ValueError):
    """Images that the guard cannot check: wrong type, shape, dtype or range, or a file that cannot be decoded."""


class SettingError(GuardError, ValueError):
    """A setting that makes no sense: an unknown card or preset, a threshold outside [0, 1], zero cells, and so on."""


class CheckpointError(GuardError):
    """A checkpoint that cannot be found, read, trusted or matched with its card."""


def one_line(error: BaseException, limit: int = 200) -> str:
    """Return what an error says, in one line of at most so many characters; its type if it says nothing."""
    return " ".join(str(error).split())[:limit] or type(error).__name__


def why(error: BaseException) -> str:
    """Return what went wrong with a file, without its name, in one line."""
    said = getattr(error, "strerror", None) or str(error)
    return " ".join(str(said).split())[:200] or type(error).__name__
