"""Numbers as text: the same digits in the page, the Markdown summary and the terminal."""

from __future__ import annotations

MISSING = "–"
MINUS = "\u2212"


def sig(x: float | None, digits: int = 3) -> str:
    """Number with `digits` significant digits, a dash for a missing one.

    >>> [sig(x) for x in (None, 0.0, 0.98765, -12345.6, 3.2e-9, float("inf"))]
    ['–', '0', '0.988', '-12,346', '3.2e-9', '∞']
    """
    if x is None or x != x:
        return MISSING
    if x in (float("inf"), float("-inf")):
        return "∞" if x > 0 else "-∞"
    if 10.0**digits <= abs(x) < 1e6:
        return f"{x:,.0f}"
    mantissa, _, exponent = f"{x:.{digits}g}".partition("e")
    return f"{mantissa}e{int(exponent)}" if exponent else mantissa


def signed(x: float | None, digits: int = 3) -> str:
    """Like `sig`, with the sign written even when it is a plus."""
    text = sig(x, digits)
    return text if x is None or x != x or x <= 0 else f"+{text}"


def typeset(text: str) -> str:
    """Replace the hyphens of a formatted number by true minus signs."""
    return text.replace("-", MINUS)


def shorten(text: str, width: int) -> str:
    """Text of at most `width` characters, its middle replaced where it is longer.

    >>> shorten("jacobian/dcgan-z64/trained", 16)
    'jacobia…/trained'
    """
    tail = width // 2
    return text if len(text) <= width else f"{text[: width - tail - 1]}…{text[-tail:]}"


def whole(x: float | None) -> str:
    """Count with thousands separators.

    >>> whole(12000), whole(None)
    ('12,000', '–')
    """
    return MISSING if x is None else f"{x:,.0f}" if float(x).is_integer() else sig(x)


def interval(ci: list[float | None] | None, shift: float = 0.0, digits: int = 3) -> str:
    """Interval [lo, hi] after subtraction of `shift`; a dash when an end is missing."""
    if not ci or ci[0] is None or ci[1] is None:
        return MISSING
    return f"[{sig(ci[0] - shift, digits)}, {sig(ci[1] - shift, digits)}]"


def span(values: list[float], fmt: str = ".3g") -> str:
    """Smallest to largest of some values, one number when they agree, a dash when there are none.

    >>> span([1.0, 3.0, 2.0]), span([2.0, 2.0]), span([])
    ('1–3', '2', '–')
    """
    if not values:
        return MISSING
    lo, hi = format(min(values), fmt), format(max(values), fmt)
    return lo if lo == hi else f"{lo}–{hi}"


def plural(count: int, noun: str) -> str:
    """Count and noun, the noun in the plural unless the count is one.

    >>> plural(1, "cell"), plural(2000, "cell")
    ('1 cell', '2,000 cells')
    """
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def listed(items: list[str]) -> str:
    """Items as an English enumeration.

    >>> listed(["a", "b", "c"])
    'a, b and c'
    """
    return (
        items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}" if items else ""
    )
