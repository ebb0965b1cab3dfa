"""Ollama's own API: lines of JSON, streamed where the request does not say.

Source: ollama docs/api.md; the ollama client 0.6.3. Where a prompt was cached, older servers leave
`prompt_eval_count` out: then it is counted.
"""

from inf_middleware.wire.dialect import FUNCTION_CALLS, STRUCTURED_OUTPUT, Dialect
from inf_middleware.wire.dialects import openai_chat
from inf_middleware.wire.form import Answers
from inf_middleware.wire.usage import UsageAt

_USAGE = UsageAt(
    at="",
    input="prompt_eval_count",
    output="eval_count",
    cached_input="prompt_eval_cached_count",
)

CHAT = Dialect(
    name="ollama.chat",
    paths=("/api/chat",),
    messages=("messages",),
    schemas=("tools", "format"),
    output_cap=("options.num_predict",),
    streams=True,
    features=(("tools", FUNCTION_CALLS), ("format", STRUCTURED_OUTPUT)),
    truncation=("",),
    errors="ollama",
    folds_names=True,
    answers=Answers(
        usage=(_USAGE,),
        text=(
            "message.content",
            "message.thinking",
            "message.tool_calls.function.name",
            "message.tool_calls.function.arguments",
        ),
        delta=(
            "message.content",
            "message.thinking",
            "message.tool_calls.function.name",
            "message.tool_calls.function.arguments",
        ),
        end_flag="done",
    ),
    also=(openai_chat.CHAT.answers,),  # llama.cpp's server answers so on this path
)

GENERATE = Dialect(
    name="ollama.generate",
    paths=("/api/generate",),
    texts=("prompt", "system", "suffix"),
    schemas=("format",),
    output_cap=("options.num_predict",),
    streams=True,
    features=(("format", STRUCTURED_OUTPUT),),
    truncation=("",),
    errors="ollama",
    folds_names=True,
    answers=Answers(
        usage=(_USAGE,),
        text=("response", "thinking"),
        delta=("response", "thinking"),
        end_flag="done",
    ),
)

EMBED = Dialect(
    name="ollama.embed",
    paths=("/api/embed", "/api/embeddings"),
    texts=("input", "prompt"),
    generates=False,
    errors="ollama",
    folds_names=True,
    answers=Answers(usage=(_USAGE,)),
)
