"""What a client would rather have: a page or JSON, and in which language (RFC 9110, section 12)."""

from collections.abc import Sequence

# More than any browser sends; what comes after is not looked at.
_CHOICES_MAX = 64


def prefers_html(accept: str) -> bool:
    """Tell whether a page is wanted: where `text/html` is named, and no less than JSON is.

    Wildcards alone (curl, SDKs) mean JSON.
    """
    weights = dict(reversed(weighted(accept)))  # the first that names a type holds
    html = weights.get("text/html", weights.get("application/xhtml+xml", 0.0))
    return html > 0 and html >= weights.get("application/json", 0.0)


def best_language(accept_language: str, offered: Sequence[str]) -> str:
    """Return the offered language that is liked best, the first offered where none is named.

    Languages are told by their first part: "zh-Hant-TW" is Chinese.
    """
    best, best_weight = offered[0], 0.0
    refused = set()
    for name, weight in weighted(accept_language):
        language = name.partition("-")[0]
        if not weight:
            refused.add(language)
        if language == "*":
            language = next((one for one in offered if one not in refused), offered[0])
        if language in offered and weight > best_weight:
            best, best_weight = language, weight
    return best


def weighted(header: str) -> list[tuple[str, float]]:
    """Return the choices of a header in lower case, each with its weight; 0 where that is wrong."""
    choices = []
    for element in header.split(",")[:_CHOICES_MAX]:
        name, *parameters = (part.strip().lower() for part in element.split(";"))
        weight = 1.0
        for parameter in parameters:
            key, _, value = parameter.partition("=")
            if key.strip() == "q":
                weight = _weight(value.strip())
        if name:
            choices.append((name, weight))
    return choices


def _weight(text: str) -> float:
    whole, _, places = text.partition(".")
    digits = whole + places
    if not (digits.isascii() and digits.isdigit()) or len(whole) != 1 or len(places) > 3:
        return 0.0
    return min(float(text), 1.0)
