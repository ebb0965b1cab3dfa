"""SGLang's own API: each event repeats the text before it, and the counts so far.

Source: SGLang 0.5.23, srt/managers/io_struct.py, srt/entrypoints/http_server.py.
"""

from inf_middleware.wire.dialect import Dialect
from inf_middleware.wire.dialects.tgi import GENERATE as TGI_GENERATE
from inf_middleware.wire.form import Answers
from inf_middleware.wire.usage import UsageAt

GENERATE = Dialect(
    name="sglang.generate",
    paths=("/generate",),
    methods=("POST", "PUT"),
    reads_body=False,
    texts=("text", "input_ids"),
    output_cap=("sampling_params.max_new_tokens",),
    choices="sampling_params.n",
    prompts="text|input_ids",
    answers=Answers(
        usage=(
            UsageAt(
                at="meta_info",
                input="prompt_tokens",
                output="completion_tokens",
                cached_input="cached_tokens",
                reasoning="reasoning_tokens",
            ),
        ),
        id=("meta_info.id",),
        text=("text",),
        delta=("text",),
        cumulative=True,
        by_index=True,
    ),
    variants=(("inputs", TGI_GENERATE),),
)
