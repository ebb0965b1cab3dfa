"""llama-cpp-python's server, metered, limited and billed, with all of its own settings.

pip install inf-middleware "llama-cpp-python[server]"
MODEL=model.gguf INF_MIDDLEWARE_CONFIG=inf.toml uvicorn --app-dir examples llama_cpp_gate:app

The server's own settings are environment variables: MODEL, MODEL_ALIAS, N_CTX and so on. Leave its
API_KEY unset: it is one key for all, in the header that names accounts here. Start one process, for
each would load the model again.
"""

import os

from llama_cpp.server.app import create_app
from starlette.middleware import Middleware

from inf_middleware import Gate

# Its default ends a running stream when the next request comes: both would have been paid for.
os.environ.setdefault("INTERRUPT_REQUESTS", "false")

app = create_app()
# Innermost, so that the server's own CORS stands outside: browsers may read a refusal.
app.user_middleware.append(Middleware(Gate))
