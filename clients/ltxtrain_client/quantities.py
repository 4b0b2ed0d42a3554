"""Text for people: counts, sizes, durations and prices."""


def duration_text(seconds: float) -> str:
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def price_text(units: int, usd: float) -> str:
    """Billable units and their price. The unit price is a setting of the services."""
    return f"{units} billable units ({usd:.2f} USD at the unit price set in the services)"


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
