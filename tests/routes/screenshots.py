"""The account's page as documentation shows it: python -m tests.routes.screenshots docs/images."""

import sys
import tempfile
from pathlib import Path

import httpx

from tests.devtools import a_page
from tests.routes.pages import build, fill
from tests.servers import serving

# From a name to how it is looked at: width, dark, language.
PICTURES = {
    "account-page": (960, False, "en"),
    "account-page-phone": (390, True, "zh-CN"),
}


def take(folder: Path) -> None:
    """Take all pictures."""
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "ledger.db"
        fill(path, "acme")
        with serving(build(path)) as url, a_page(Path(scratch) / "profile") as page:
            for _ in range(3):
                httpx.post(
                    f"{url}/v1/chat/completions",
                    json={"model": "inf-chat-v1", "messages": []},
                    headers={"authorization": "Bearer sk-acme"},
                    timeout=30.0,
                )
            page.password = "sk-acme"
            for name, (width, dark, language) in PICTURES.items():
                page.show(f"{url}/account", width=width, dark=dark, language=language)
                (folder / f"{name}.png").write_bytes(page.picture())


if __name__ == "__main__":
    take(Path(sys.argv[1]))
