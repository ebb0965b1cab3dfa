"""llama.cpp's own completions.

Source: llama.cpp tools/server/README.md. Its counters can be left out by a request
(`response_fields`): then they are counted.
"""

from inf_middleware.wire.dialect import Dialect
from inf_middleware.wire.form import Answers
from inf_middleware.wire.usage import UsageAt

COMPLETION = Dialect(
    name="llama_cpp.completion",
    paths=("/completion", "/infill"),
    reads_body=False,
    texts=("prompt", "input_prefix", "input_suffix", "input_extra"),
    schemas=("json_schema", "grammar"),
    output_cap=("n_predict", "max_completion_tokens", "max_tokens"),
    choices="n|n_cmpl",
    prompts="prompt",
    answers=Answers(
        usage=(
            UsageAt(
                at="",
                input="tokens_evaluated",
                output="tokens_predicted",
                cached_input="timings.cache_n",
            ),
        ),
        text=("content",),
        delta=("content",),
        by_index=True,  # of the prompts
        end_flag="stop",
    ),
)
