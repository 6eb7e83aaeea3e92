"""Round numbers along an axis."""

import math

TICKS = 5
FEWEST = 3


def nice_ticks(low: float, high: float) -> list[float]:
    """About TICKS round numbers which span low..high, equally far from one another."""
    if high - low <= 1e-12 * max(abs(low), abs(high), 1e-12):
        low, high = (low - abs(low) / 2, high + abs(high) / 2) if low else (0.0, 1.0)
    raw = (high - low) / TICKS
    unit = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * unit for factor in (1, 2, 2.5, 5, 10) if factor * unit >= raw)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [round(index * step, 12) for index in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Round positive numbers which span low..high on a logarithmic axis: powers of ten, with 2 and 5 times these or all of
    their multiples where there would be few."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1,), (1, 2, 5), range(1, 10)):
        each = [float(f"{factor}e{decade}") for decade in decades for factor in factors]
        first = max((tick for tick in each if tick <= low), default=each[0])
        last = min((tick for tick in each if tick >= high), default=each[-1])
        found = [tick for tick in each if first <= tick <= last]
        if len(found) > FEWEST:
            return found
    # A narrow range: equal steps are as good there.
    return [tick for tick in nice_ticks(low, high) if tick > 0]
