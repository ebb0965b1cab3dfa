"""LitServe whose API servers share accounts, limits and bills.

pip install inf-middleware litserve
python examples/litserve_gate.py --port 8000

With several API servers, which are processes, the limits must be in Redis, or each process counts
by itself:

redis-server --port 6379 &
STORAGE=redis://localhost:6379 python examples/litserve_gate.py --port 8000 --api-servers 2

Leave LIT_SERVER_API_KEY unset: it is one key for all, in a header that names accounts here.
"""

import argparse
import os
from collections.abc import Iterator
from typing import Any

import litserve
from litserve.specs.openai import ChatCompletionRequest

from inf_middleware import Account, Gate

ACCOUNTS = {
    "sk-free": Account("free-riders"),  # a new account is on the level Free
    "sk-acme": Account("acme", recharged="500"),  # ¥500 recharged in all: Tier1
}


class Chat(litserve.LitAPI):
    """A model that repeats what it is told; yours is here."""

    def setup(self, device: str) -> None:
        """Load the model, in a process of LitServe's own."""

    def predict(self, asked: ChatCompletionRequest) -> Iterator[dict[str, Any]]:
        """Yield the answer piece by piece, and its tokens with the last piece alone.

        LitServe adds up what all pieces tell, in JSON, and reports the last one's, in streams.
        Where no piece tells any, the answer is counted from its text.
        """
        texts = [str(message.content).split() for message in asked.messages]
        words = texts[-1]
        read, written = sum(map(len, texts)), len(words)
        for word in words:
            yield {"role": "assistant", "content": word + " "}
        usage = {"prompt_tokens": read, "completion_tokens": written}
        yield {"role": "assistant", "content": "", **usage, "total_tokens": read + written}


def main() -> None:
    """Serve until stopped."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--api-servers", type=int, default=1)
    given = parser.parse_args()
    options = {
        "accounts": ACCOUNTS,
        "storage": os.environ.get("STORAGE", "memory://"),
        "ledger": os.environ.get("LEDGER", "sqlite:///inf-ledger.db"),
    }
    server = litserve.LitServer(
        Chat(spec=litserve.OpenAISpec()),
        accelerator="cpu",
        middlewares=[(Gate, options)],
    )
    server.run(
        host="127.0.0.1",
        port=given.port,
        num_api_servers=given.api_servers,
        generate_client_file=False,
    )


if __name__ == "__main__":
    main()
