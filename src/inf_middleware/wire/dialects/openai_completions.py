"""OpenAI's legacy completions, which vLLM, SGLang and llama.cpp serve too.

llama.cpp's server answers on `/completions` in its own words; both are understood. `n_cmpl` is its
name for `n`.

Source: platform.openai.com/docs/api-reference/completions (2026-11); recorded answers of vLLM
0.33.0 and llama-cpp-python 0.3.36; llama.cpp tools/server/README.md.
"""

from inf_middleware.wire.dialect import STRUCTURED_OUTPUT, Dialect
from inf_middleware.wire.dialects.llama_cpp import COMPLETION
from inf_middleware.wire.form import Answers
from inf_middleware.wire.usage import OPENAI_USAGE

COMPLETIONS = Dialect(
    name="openai.completions",
    paths=("/completions",),
    texts=("prompt", "suffix"),
    schemas=("response_format",),
    output_cap=("max_tokens", "max_completion_tokens"),
    choices="n|n_cmpl",
    best_of="best_of",
    prompts="prompt",
    echo="echo",
    asks_usage=True,
    features=(
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
        text=("text",),
        delta=("text",),
        usage_ends=True,
        told_apart="timings",  # llama.cpp's
    ),
    variants=(("n_predict", COMPLETION),),
)
