"""Text Generation Inference: usage only where the request asks for details, else counted.

Source: types of huggingface_hub 2.4.0 (inference/_generated/types/text_generation.py).
"""

from dataclasses import replace

from inf_middleware.wire.dialect import Dialect
from inf_middleware.wire.form import Answers
from inf_middleware.wire.usage import UsageAt

GENERATE = Dialect(
    name="tgi.generate",
    reads_body=False,
    texts=("inputs",),
    output_cap=("parameters.max_new_tokens",),
    best_of="parameters.best_of",
    echo="parameters.return_full_text",
    tells_usage="parameters.details",
    answers=Answers(
        usage=(UsageAt(at="details", input="input_length", output="generated_tokens"),),
        text=("generated_text",),
        delta=("token.text",),
        group=(),  # `index` is the number of the token
        end_flag="generated_text",
    ),
)

GENERATE_STREAM = replace(
    GENERATE,
    name="tgi.generate_stream",
    paths=("/generate_stream",),
    echo="",  # its tokens are new ones alone
    stream="",
    streams=True,
)
