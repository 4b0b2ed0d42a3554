"""Text for people: counts, sizes, durations and prices."""

from google.type.money_pb2 import Money


def duration_text(seconds: float) -> str:
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def price_text(units: int, price: Money | None) -> str:
    """Billable units and their price, where the operator has set one."""
    text = count_text(units, "billable unit")
    return f"{text} ({money_text(price)})" if price is not None and price.currency_code else text


def money_text(price: Money) -> str:
    """An amount with its currency, as in "12.40 USD"."""
    return f"{price.units + price.nanos / 1e9:.2f} {price.currency_code}"


def count_text(count: int, noun: str) -> str:
    """A number with its noun in singular or plural: "1 video", "2 videos"."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def size_text(size_bytes: float) -> str:
    """Bytes in decimal units, as disks and networks are sold."""
    for unit in ("B", "kB", "MB", "GB"):
        if size_bytes < 1000:
            return f"{size_bytes:.0f} {unit}" if unit == "B" else f"{size_bytes:.1f} {unit}"
        size_bytes /= 1000
    return f"{size_bytes:.1f} TB"
