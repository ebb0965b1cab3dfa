"""Refusals in a real browser's eyes: a page of another origin reads status, reason and wait."""

from pathlib import Path
from typing import Any

from starlette.middleware.cors import CORSMiddleware

from examples.model_app import build_app
from inf_middleware import Account, Gate
from inf_middleware.call.failed_keys import FAILED_KEYS_PER_MINUTE
from tests.browser import in_a_page
from tests.servers import serving

# As docs/accounts.md has it.
EXPOSED = [
    "retry-after",
    "retry-after-ms",
    "x-should-retry",
    "x-request-id",
    "x-ratelimit-remaining-requests",
]

SCRIPT = """
const ask = async (key, body) => {
  try {
    const answer = await fetch("%(url)s/v1/chat/completions", {
      method: "POST",
      headers: {"content-type": "application/json", "authorization": "Bearer " + key},
      body: JSON.stringify(body),
    });
    return {
      status: answer.status,
      headers: Object.fromEntries(answer.headers),
      body: await answer.json(),
    };
  } catch (error) {
    return {error: error.name};
  }
};
const chat = {model: "inf-chat-v1", max_tokens: 3, messages: [{role: "user", content: "tea?"}]};
const answers = {unknown: await ask("sk-nobody", chat), suspended: await ask("sk-gone", chat)};
for (let n = 0; n < 5; n++) answers.asked = await ask("sk-free", chat);
answers.invalid = await ask("sk-five", [chat]);
for (let n = 0; n < %(failed)d; n++) answers.guessed = await ask("guess-" + n, chat);
answers.good = await ask("sk-five", chat);
return answers;
"""

ACCOUNTS = {
    "sk-free": Account("free-riders"),
    "sk-five": Account("umbrella", recharged="100000"),
    "sk-gone": Account("gone", suspended=True),
}


def answers_in_a_browser(tmp_path: Path, *, cors_outside: bool) -> dict[str, Any]:
    app = build_app()
    adding = [
        (Gate, {"accounts": ACCOUNTS, "ledger": f"sqlite:///{tmp_path}/ledger.db"}),
        (
            CORSMiddleware,
            {
                "allow_origins": ["*"],
                "allow_methods": ["POST"],
                "allow_headers": ["authorization", "content-type"],
                "expose_headers": EXPOSED,
            },
        ),
    ]
    for middleware, options in adding if cors_outside else reversed(adding):
        app.add_middleware(middleware, **options)  # type: ignore[arg-type]
    with serving(app) as url:
        script = SCRIPT % {"url": url, "failed": FAILED_KEYS_PER_MINUTE}
        return dict(in_a_page(script, tmp_path / "profile"))


def test_a_page_of_another_origin_reads_refusals(tmp_path: Path) -> None:
    answers = answers_in_a_browser(tmp_path, cors_outside=True)

    def told(name: str) -> tuple[int, str]:
        return answers[name]["status"], answers[name]["body"]["error"]["code"]

    assert told("unknown") == (401, "invalid_api_key")
    assert told("suspended") == (403, "account_suspended")
    assert told("invalid") == (400, "invalid_request_body")
    assert told("asked") == (429, "requests_limit_exceeded")
    assert told("guessed") == (429, "too_many_failed_keys")
    assert answers["good"]["status"] == 200
    assert answers["unknown"]["headers"]["x-should-retry"] == "false"
    for name in ("asked", "guessed"):
        headers = answers[name]["headers"]
        assert 0 < int(headers["retry-after"]) <= 60
        assert 0 < int(headers["retry-after-ms"]) <= 60_000
    assert "Free" in answers["asked"]["body"]["error"]["message"]
    assert answers["asked"]["headers"]["x-ratelimit-remaining-requests"] == "0"
    assert answers["asked"]["headers"]["x-request-id"]


def test_with_ours_outside_of_cors_a_page_is_told_nothing_but_answers_reach_it(
    tmp_path: Path,
) -> None:
    """What docs/accounts.md says of the wrong order: preflights pass, refusals are unreadable."""
    answers = answers_in_a_browser(tmp_path, cors_outside=False)
    assert answers["unknown"] == answers["asked"] == {"error": "TypeError"}
    assert answers["good"]["status"] == 200
