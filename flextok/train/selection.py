"""Which validation was the best, and whether another is worth waiting for: told by the history alone, so that a resumed
training judges as one that was never stopped."""

import difflib

from flextok.errors import UsageError
from flextok.train.history import History


def check_metric(history: History, metric: str) -> None:
    """Raises UsageError where no validation has recorded `metric`."""
    known = sorted(name for name in history.names() if name.startswith("val/"))
    if metric not in known:
        near = difflib.get_close_matches(metric, known, n=1, cutoff=0.0)
        raise UsageError(
            f"expected train.keep_best and train.stop_early with a metric among {', '.join(known)}, found '{metric}'; the "
            f"nearest is '{near[0]}'"
        )


def best(history: History, metric: str) -> tuple[int, float]:
    """Step and value of the lowest `metric` so far, the first of equal ones."""
    return min(history.series(metric), key=lambda point: (point[1], point[0]))


def is_newest_best(history: History, metric: str) -> bool:
    """Whether the last value of `metric` is below all before it."""
    return best(history, metric)[0] == history.series(metric)[-1][0]


def since_best(history: History, metric: str) -> int:
    """Values of `metric` since the lowest one."""
    found = history.series(metric)
    if not found:
        return 0
    lowest, _ = best(history, metric)
    return sum(step > lowest for step, _ in found)
