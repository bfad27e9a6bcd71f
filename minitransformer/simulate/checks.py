"""The same words for the same faults, wherever a number comes in."""

import math


def require_number(name: str, value, *, above: float | None = None, least: float | None = None):
    """Raises ValueError unless `value` is a finite number above `above`, or of at least `least`."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if is_number and (above is None or value > above) and (least is None or value >= least):
        return
    bound = (
        ""
        if above is None and least is None
        else f" above {above}"
        if least is None
        else f" of {least} or more"
    )
    raise ValueError(f"{name} must be a number{bound}, got {value!r}")


def require_whole(name: str, value, *, least: int = 1):
    """Raises ValueError unless `value` is a whole number of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r}")


def require_share(name: str, value):
    """Raises ValueError unless `value` is above 0 and at most 1."""
    if not 0 < value <= 1:
        raise ValueError(f"{name} is a share, above 0 and at most 1, got {value!r}")
