"""Kubernetes quantities, exactly: ``100m``, ``1.5Gi``, ``1e3``, ``0.5``.

The API treats ``1000m`` and ``1`` as one amount and rewrites what it is given into a canonical form, so comparing text finds
differences that are none, and comparing floats misses some that are. An amount is held as a whole number of nano-units, the
finest that the API keeps; anything finer is rounded away from zero, as the API does. The API caps silently at 2⁶³−1; here that is
an error, because an amount that was cut must not pass for the one that was asked for.
"""

import re
from dataclasses import dataclass, field
from decimal import Context, Decimal
from functools import total_ordering
from typing import Literal, Self

from ipe_events.errors import IpeError

Format = Literal["decimal", "binary", "exponent"]

LARGEST = 2**63 - 1
"""The largest amount that the API holds."""

_NANO = 10**9
_DECIMAL = {"n": -9, "u": -6, "m": -3, "": 0, "k": 3, "M": 6, "G": 9, "T": 12, "P": 15, "E": 18}
_BINARY = {"Ki": 10, "Mi": 20, "Gi": 30, "Ti": 40, "Pi": 50, "Ei": 60}
_DECIMAL_SUFFIX = {exponent: suffix for suffix, exponent in _DECIMAL.items()}
_BINARY_SUFFIX = {exponent: suffix for suffix, exponent in _BINARY.items()}
_TEXT = re.compile(
    r"(?P<sign>[+-]?)(?P<whole>[0-9]*)(?:\.(?P<fraction>[0-9]*))?"
    r"(?:(?P<suffix>[numkMGTPE]|[KMGTPE]i)|[eE](?P<exponent>[+-]?[0-9]{1,4}))?",
    re.ASCII,
)
_LONGEST = 100
_CONTEXT = Context(prec=40)


class QuantityError(IpeError, ValueError):
    """A text is no quantity, or an amount is beyond what the API holds."""


@total_ordering
@dataclass(frozen=True, slots=True, eq=False)
class Quantity:
    """An amount of CPU, memory or anything that is counted.

    Equality, order and hash go by the amount alone: ``Quantity.parse("1000m") == Quantity.parse("1")``.

    Attributes:
        nanos: the amount in units of 10⁻⁹.
        format: how it was written, and so how it is written again: ``decimal`` (``1500m``), ``binary`` (``1536Mi``) or
            ``exponent`` (``15e2``).
    """

    nanos: int
    format: Format = field(default="decimal")

    def __post_init__(self) -> None:
        if abs(self.nanos) > LARGEST * _NANO:
            raise QuantityError(f"an amount of about {Decimal(self.nanos) / _NANO:.3E} is beyond what Kubernetes holds (2^63-1)")

    @classmethod
    def parse(cls, value: object) -> Self:
        """Read a quantity as it stands in an object: text, or a number that YAML left bare.

        Raises:
            QuantityError: it is none, or too large.
        """
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise QuantityError(f"{_shown(value)} is no quantity", fix="write text such as `500m`, `1.5Gi` or `2`")
        text = value if isinstance(value, str) else _shown(value)
        match = _TEXT.fullmatch(text) if len(text) <= _LONGEST else None
        if match is None or not (match["whole"] or match["fraction"]):
            raise QuantityError(
                f"{_shown(value)} is no quantity", fix="a number and n, u, m, k, M, G, T, P, E, Ki, Mi, Gi, Ti, Pi, Ei or e3"
            )
        fraction = match["fraction"] or ""
        digits = int((match["whole"] or "0") + fraction)
        suffix = match["suffix"] or ""
        form: Format = "binary" if suffix in _BINARY else "exponent" if match["exponent"] else "decimal"
        scale = 9 - len(fraction) + (int(match["exponent"] or 0) if form != "binary" else 0)
        if form == "binary":
            digits <<= _BINARY[suffix]
        else:
            scale += _DECIMAL[suffix]
        nanos = _scaled(digits, scale, value)
        if form == "binary" and 0 < nanos < _NANO:
            form = "decimal"
        return cls(-nanos if match["sign"] == "-" else nanos, form)

    @property
    def value(self) -> Decimal:
        """The exact amount."""
        return Decimal(self.nanos).scaleb(-9, _CONTEXT)

    def __str__(self) -> str:
        """The canonical form: no fraction, the largest suffix that leaves a whole number, the format that it was written in."""
        if self.nanos == 0:
            return "0"
        whole, rest = divmod(abs(self.nanos), _NANO)
        sign = "-" if self.nanos < 0 else ""
        if self.format == "binary" and rest == 0 and whole >= 1024:
            exponent = 0
            while whole % 1024 == 0:
                whole, exponent = whole // 1024, exponent + 10
            return f"{sign}{whole}{_BINARY_SUFFIX[exponent] if exponent else ''}"
        digits, exponent = abs(self.nanos), -9
        while digits % 1000 == 0 and exponent < 18:
            digits, exponent = digits // 1000, exponent + 3
        if self.format == "exponent":
            return f"{sign}{digits}e{exponent}" if exponent else f"{sign}{digits}"
        return f"{sign}{digits}{_DECIMAL_SUFFIX[exponent]}"

    def __eq__(self, other: object) -> bool:
        return self.nanos == other.nanos if isinstance(other, Quantity) else NotImplemented

    def __lt__(self, other: object) -> bool:
        return self.nanos < other.nanos if isinstance(other, Quantity) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.nanos)

    def __bool__(self) -> bool:
        return self.nanos != 0

    def __add__(self, other: "Quantity") -> "Quantity":
        """The sum, in the format of the first (of the second when the first is zero).

        Raises:
            QuantityError: it is too large.
        """
        return Quantity(self.nanos + other.nanos, self.format if self.nanos else other.format)

    def __sub__(self, other: "Quantity") -> "Quantity":
        """The difference; formats as for a sum."""
        return self + -other

    def __neg__(self) -> "Quantity":
        return Quantity(-self.nanos, self.format)

    def __mul__(self, factor: int | Decimal) -> "Quantity":
        """The multiple, rounded away from zero at 10⁻⁹; a float is refused (``Decimal("1.2")`` says what is meant)."""
        if not isinstance(factor, int | Decimal) or not -LARGEST <= factor <= LARGEST:  # type: ignore[redundant-expr]  # a float
            raise QuantityError(f"{_shown(factor)} is no factor of a quantity", fix="use an int or a Decimal below 2^63")
        top, bottom = factor.as_integer_ratio()
        nanos = -(-abs(self.nanos * top) // bottom)
        return Quantity(-nanos if (self.nanos < 0) != (top < 0) else nanos, self.format)

    __rmul__ = __mul__


def same_quantity(one: object, other: object) -> bool:
    """Whether two values of a resource field mean the same amount: ``"1000m"`` and ``1`` do.

    What is no quantity is the same only as its equal, of the same type.
    """
    if type(one) is type(other) and one == other:
        return True
    try:
        return Quantity.parse(one) == Quantity.parse(other)
    except QuantityError:
        return False


def _scaled(digits: int, scale: int, value: object) -> int:
    """``digits`` × 10^``scale``, rounded up; bounded before any large number is made."""
    if digits == 0:
        return 0
    if scale > 30:
        raise QuantityError(f"{_shown(value)} is beyond what Kubernetes holds (2^63-1)")
    if scale >= 0:
        return digits * int(10**scale)
    if scale < -2 * _LONGEST:
        return 1
    divisor: int = 10 ** abs(scale)
    return -(-digits // divisor)


def _shown(value: object) -> str:
    """A value in a bounded number of characters."""
    if isinstance(value, int) and value.bit_length() > 300:
        return f"an integer of {value.bit_length()} bits"
    text = repr(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}… (cut, {len(text):,} characters)"
