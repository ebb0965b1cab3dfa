"""OpenAI chat completions, as OpenAI, vLLM, SGLang, llama.cpp and many others speak it.

Source: platform.openai.com/docs/api-reference/chat (2026-11); recorded answers of vLLM 0.33.0,
llama-cpp-python 0.3.36 and transformers 5.23.0. `n_predict` and `n_cmpl` are llama.cpp's own names
(tools/server/README.md), which hold on this path too. Of several choices it tells the usage of the
first, in a whole answer (tools/server, 2026-11).
"""

from inf_middleware.wire.dialect import FUNCTION_CALLS, STRUCTURED_OUTPUT, Dialect
from inf_middleware.wire.form import Answers
from inf_middleware.wire.usage import OPENAI_USAGE

_OUTPUT = (
    "content",
    "reasoning_content|reasoning",
    "refusal",
    "tool_calls.function.name",
    "tool_calls.function.arguments",
    "tool_calls.custom.name",
    "tool_calls.custom.input",
    "function_call.name",
    "function_call.arguments",
)

CHAT = Dialect(
    name="openai.chat",
    paths=("/chat/completions",),
    messages=("messages",),
    schemas=("tools", "functions", "response_format"),
    output_cap=("max_completion_tokens", "max_tokens", "n_predict"),
    choices="n|n_cmpl",
    asks_usage=True,
    features=(
        ("tools", FUNCTION_CALLS),
        ("functions", FUNCTION_CALLS),
        ("response_format", STRUCTURED_OUTPUT),
        ("guided_json", STRUCTURED_OUTPUT),
        ("guided_regex", STRUCTURED_OUTPUT),
        ("guided_choice", STRUCTURED_OUTPUT),
        ("guided_grammar", STRUCTURED_OUTPUT),
        ("structured_outputs", STRUCTURED_OUTPUT),
    ),
    truncation=("truncate_prompt_tokens",),
    folds_names=True,  # Ollama's
    answers=Answers(
        usage=(OPENAI_USAGE,),
        each="choices",
        text=tuple(f"message.{path}" for path in _OUTPUT),
        delta=tuple(f"delta.{path}" for path in _OUTPUT),
        usage_ends=True,
        told_apart="timings",  # llama.cpp's
    ),
)
