"""Skips: ranges of an order that a run leaves out, and the arithmetic of what is left.

An order numbers everything that could be read; a run reads it from the front and leaves some ranges
out. The n-th item that is read then has a place of its own in the order, in closed form, so that a
checkpoint stores its step and the ranges, and no state of a loader.
"""

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

from lit_pretrain.errors import UserError

_RANGE = re.compile(r"\s*(\d+)\s*:\s*(\d+)\s*", re.ASCII)


@dataclass(frozen=True)
class Skips:
    """Ranges of places that are left out; of steps as users write them, or of samples."""

    ranges: tuple[tuple[int, int], ...] = ()
    """(begin, end) without the end; rising, apart from each other, none empty."""

    @classmethod
    def of(cls, ranges: Iterable[tuple[int, int]]) -> "Skips":
        """Unite ranges in any order, which may overlap."""
        united: list[tuple[int, int]] = []
        for begin, end in sorted(ranges):
            if begin >= end:
                continue
            if united and begin <= united[-1][1]:
                united[-1] = (united[-1][0], max(end, united[-1][1]))
            else:
                united.append((begin, end))
        return cls(tuple(united))

    @classmethod
    def parse(cls, text: str | None) -> "Skips":
        """Read the option `skip_steps`, such as `1200:1210` or `1200:1210,1300:1305`.

        Raises:
            UserError: It has another form, or a range is empty.
        """
        found: list[tuple[int, int]] = []
        for part in [] if text is None or not text.strip() else str(text).split(","):
            match = _RANGE.fullmatch(part)
            if match is None or int(match[1]) >= int(match[2]):
                raise UserError(
                    f"skip_steps={text!r}: {part.strip()!r} is no range of steps; write BEGIN:END,"
                    " such as 1200:1210 for the ten steps from 1200 to 1209, several with commas"
                    " between them, and in YAML with quotes"
                )
            found.append((int(match[1]), int(match[2])))
        return cls.of(found)

    def __bool__(self) -> bool:
        return bool(self.ranges)

    def __str__(self) -> str:
        return ",".join(f"{begin}:{end}" for begin, end in self.ranges)

    def __or__(self, other: "Skips") -> "Skips":
        return Skips.of([*self.ranges, *other.ranges])

    @cached_property
    def _skipped(self) -> list[int]:
        """Places that are left out before the end of each range, after a 0."""
        return [0, *accumulate(end - begin for begin, end in self.ranges)]

    @cached_property
    def _kept(self) -> list[int]:
        """Places that are read before the begin of each range."""
        return [
            begin - skipped for (begin, _), skipped in zip(self.ranges, self._skipped, strict=False)
        ]

    @property
    def count(self) -> int:
        """Number of places that are left out."""
        return self._skipped[-1]

    def place(self, n: int) -> int:
        """Return the place of the n-th item that is read, counted from 0."""
        return n + self._skipped[bisect_right(self._kept, n)]

    def gone(self, n: int) -> int:
        """Count the places that are read or left out until n items are read."""
        return self.place(n - 1) + 1 if n else 0

    def kept_until(self, place: int) -> int:
        """Count the items that are read before a place."""
        i = bisect_left([end for _, end in self.ranges], place)
        inside = max(0, place - self.ranges[i][0]) if i < len(self.ranges) else 0
        return place - self._skipped[i] - inside

    def passed(self, n: int) -> tuple[tuple[int, int], ...]:
        """Return the ranges that lie before the place of the last of the first n items."""
        return self.ranges[: bisect_right(self._kept, n - 1)]

    def holds(self, place: int) -> bool:
        """Tell whether a place is left out."""
        return any(begin <= place < end for begin, end in self.ranges)

    def begins_as(self, other: "Skips", n: int) -> bool:
        """Tell whether the first n items are the same with other skips."""
        return self.passed(n) == other.passed(n)

    def whole(self, size: int) -> "Skips":
        """Widen every range to whole groups of `size` places."""
        return Skips.of(
            (begin // size * size, -(-end // size) * size) for begin, end in self.ranges
        )

    def times(self, size: int) -> "Skips":
        """Convert ranges of places to ranges of what they consist of, `size` to a place."""
        return Skips.of((begin * size, end * size) for begin, end in self.ranges)

    def over(self, size: int) -> "Skips":
        """Convert ranges that are whole groups of `size` places to ranges of these groups."""
        return Skips.of((begin // size, -(-end // size)) for begin, end in self.ranges)
