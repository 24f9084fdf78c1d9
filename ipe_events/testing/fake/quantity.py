"""Kubernetes quantities that remember how they were written: sums of ``64Mi`` stay binary, as the real quota reports them."""

import re
from dataclasses import dataclass
from fractions import Fraction
from functools import total_ordering

from ipe_events.testing.fake.status import StatusError, bad_request

_TEXT = re.compile(r"^(?P<number>[+-]?(\d+(\.\d*)?|\.\d+))(?P<suffix>[EPTGMK]i|[numkMGTPE]?|[eE][+-]?\d+)$")
_BINARY = {"Ki": 1, "Mi": 2, "Gi": 3, "Ti": 4, "Pi": 5, "Ei": 6}
_DECIMAL = {"n": -3, "u": -2, "m": -1, "": 0, "k": 1, "M": 2, "G": 3, "T": 4, "P": 5, "E": 6}


@total_ordering
@dataclass(frozen=True, slots=True, eq=False)
class Quantity:
    """An exact amount; compares and adds by value, prints in canonical form."""

    value: Fraction = Fraction(0)
    binary: bool = False

    @classmethod
    def parse(cls, text: object) -> "Quantity":
        """Read ``250m``, ``64Mi``, ``1.5``, ``2e3`` or a number.

        Raises:
            StatusError: 400.
        """
        match = _TEXT.match(str(text))
        if match is None:
            raise _malformed(text)
        number, suffix = Fraction(match["number"]), match["suffix"]
        if suffix in _BINARY:
            return cls(number * 1024 ** _BINARY[suffix], binary=True)
        if suffix in _DECIMAL:
            return cls(number * Fraction(1000) ** _DECIMAL[suffix])
        return cls(number * Fraction(10) ** int(suffix[1:]))

    def __add__(self, other: "Quantity") -> "Quantity":
        return Quantity(self.value + other.value, self.binary if self.value else other.binary)

    def __sub__(self, other: "Quantity") -> "Quantity":
        return Quantity(self.value - other.value, self.binary if self.value else other.binary)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Quantity) and self.value == other.value

    def __lt__(self, other: "Quantity") -> bool:
        return self.value < other.value

    def __hash__(self) -> int:
        return hash(self.value)

    def __bool__(self) -> bool:
        return bool(self.value)

    def __str__(self) -> str:
        scales = {s: Fraction(1024) ** e for s, e in _BINARY.items()} if self.binary and self.value >= 1024 else {}
        scales = scales or {suffix: Fraction(1000) ** exponent for suffix, exponent in _DECIMAL.items()}
        for suffix, scale in sorted(scales.items(), key=lambda pair: -pair[1]):
            if self.value and (self.value / scale).denominator == 1:
                return f"{self.value / scale}{suffix}"
        return str(int(self.value))


def _malformed(text: object) -> StatusError:
    return bad_request(
        f"quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$': {str(text)!r}"
    )
