"""What a scrape says, read by Prometheus' own parser."""

from prometheus_client.parser import text_string_to_metric_families


def scraped(text: str, deployment: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    return {
        (
            sample.name,
            frozenset({**sample.labels}.items() - {("deployment", deployment)}),
        ): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.labels.get("deployment") == deployment
    }


class Scrape:
    """What a scrape says of one deployment."""

    def __init__(self, text: str, deployment: str) -> None:
        self.samples = scraped(text, deployment)

    def __getitem__(self, asked: str | tuple[str, dict[str, str]]) -> float:
        name, labels = (asked, {}) if isinstance(asked, str) else asked
        return sum(
            value
            for (found, has), value in self.samples.items()
            if found == name and labels.items() <= dict(has).items()
        )

    def values(self, label: str) -> set[str]:
        return {dict(has)[label] for _, has in self.samples if label in dict(has)}
