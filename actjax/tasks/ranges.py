"""The one check that samplers share: a drawn count has a range that makes sense."""


def check_range(noun: str, low: int, high: int, *, least: int = 1, most: int | None = None):
    """Raises ValueError unless `least <= min_{noun} = low <= max_{noun} = high <= most`."""
    if low < least:
        raise ValueError(f"min_{noun} is {low}; it must be at least {least}")
    if high < low:
        raise ValueError(f"max_{noun} is {high}; it must be at least min_{noun} = {low}")
    if most is not None and high > most:
        raise ValueError(f"max_{noun} is {high}; it must be at most {most}")


def check_batch_size(batch_size: int):
    """Raises ValueError for an empty batch."""
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; it must be at least 1")
