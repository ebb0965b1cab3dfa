"""What vLLM serves beside the APIs of OpenAI and Anthropic: input only, and told in usage.

Source: vLLM 0.33.0, entrypoints/**/protocol.py.
"""

from inf_middleware.wire.dialect import Dialect
from inf_middleware.wire.dialects.openai_chat import CHAT
from inf_middleware.wire.dialects.openai_completions import COMPLETIONS
from inf_middleware.wire.dialects.openai_embeddings import EMBEDDINGS
from inf_middleware.wire.form import Answers
from inf_middleware.wire.usage import OPENAI_USAGE

SCORE = Dialect(
    name="vllm.score",
    paths=("/score",),
    reads_body=False,
    texts=("text_1", "text_2", "data_1", "data_2", "queries", "documents", "items"),
    generates=False,
    answers=Answers(usage=(OPENAI_USAGE,)),
)

RERANK = Dialect(
    name="vllm.rerank",
    paths=("/rerank",),
    methods=("POST", "PUT"),  # of SGLang
    reads_body=False,
    texts=("query", "documents"),
    generates=False,
    answers=Answers(usage=(OPENAI_USAGE,)),
)

POOLING = Dialect(
    name="vllm.pooling",
    paths=("/pooling", "/classify"),
    methods=("POST", "PUT"),  # of SGLang
    reads_body=False,
    messages=("messages",),
    texts=("input",),
    generates=False,
    answers=Answers(usage=(OPENAI_USAGE,)),
)

# SageMaker's one path for all: the body tells what it is.
INVOCATIONS = Dialect(
    name="vllm.invocations",
    paths=("/invocations",),
    reads_body=False,
    answers=Answers(usage=(OPENAI_USAGE,)),
    variants=(
        ("messages", CHAT),
        ("prompt", COMPLETIONS),
        ("query", RERANK),
        ("text_1", SCORE),
        ("queries", SCORE),
        ("data_1", SCORE),
        ("input", EMBEDDINGS),
    ),
)
