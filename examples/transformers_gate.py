"""`transformers serve`, metered, limited and billed, with all of its own options.

pip install inf-middleware "transformers[serving]"
INF_MIDDLEWARE_CONFIG=inf.toml python examples/transformers_gate.py serve MODEL --port 8000

Accounts, prices and the ledger are what the settings file says (docs/settings.md); without one each
network address is an account of the level Free.
"""

from typing import Any

from fastapi import FastAPI
from fastapi.middleware.cors import CORSMiddleware
from transformers.cli.serving import server
from transformers.cli.transformers import main

from inf_middleware import Gate

build_server = server.build_server


def build_gated(*handlers: Any, enable_cors: bool = False, **more: Any) -> FastAPI:
    """Build the server's app, the gate around it, and CORS around that where it is wanted."""
    app: FastAPI = build_server(*handlers, **more)
    app.add_middleware(Gate)
    if enable_cors:  # outside, so that browsers may read a refusal
        app.add_middleware(
            CORSMiddleware, allow_origins=["*"], allow_methods=["*"], allow_headers=["*"]
        )
    return app


if __name__ == "__main__":
    server.build_server = build_gated  # the command asks for it when it starts
    main()
