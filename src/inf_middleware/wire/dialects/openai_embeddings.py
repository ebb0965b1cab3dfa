"""OpenAI embeddings, as vLLM and others speak it too.

Source: platform.openai.com/docs/api-reference/embeddings (2026-11); vLLM 0.33.0 (which takes chat
messages as well).
"""

from inf_middleware.wire.dialect import Dialect
from inf_middleware.wire.form import Answers
from inf_middleware.wire.usage import OPENAI_USAGE

EMBEDDINGS = Dialect(
    name="openai.embeddings",
    paths=("/embeddings",),
    messages=("messages",),
    texts=("input",),
    generates=False,
    folds_names=True,  # Ollama's
    answers=Answers(usage=(OPENAI_USAGE,)),
)
