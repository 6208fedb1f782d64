"""Short numbers: counts and durations as tables and progress lines write them."""


def short(number: float) -> str:
    """Write a count with three digits and a suffix: 1.23M."""
    for suffix, unit in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(number) >= unit:
            return f"{number / unit:.3g}{suffix}"
    return f"{number:.3g}"


def clock(seconds: float) -> str:
    """Write a duration as h:mm:ss or m:ss."""
    whole = max(0, round(seconds))
    hours, minutes = divmod(whole // 60, 60)
    return f"{hours}:{minutes:02d}:{whole % 60:02d}" if hours else f"{minutes}:{whole % 60:02d}"
