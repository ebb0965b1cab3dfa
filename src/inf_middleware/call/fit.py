"""What can never work is refused before the model server works: by context, and by features."""

from collections.abc import Awaitable

from inf_middleware.call.admission import count_input
from inf_middleware.call.record import Call, Parts
from inf_middleware.call.refuse import Refuse
from inf_middleware.domain.prices import Price

# How far an encoding that is not the model's own may count too much: 22 % was the most seen
# (o200k_base on Chinese text of DeepSeek-V3), and a certain refusal must be certain.
_FOREIGN_MARGIN = 1.25


def refuse_misfit(call: Call, parts: Parts) -> Awaitable[None] | None:
    """Refuse a call whose model cannot serve it, as far as the price list knows the model.

    Returns what is to be awaited where that is not told by the lengths alone.

    Raises:
        Refuse: Input and declared cap certainly exceed the context, or a feature is missing (400).
    """
    request, body = call.request, call.body
    if request is None or body is None:
        return None
    if call.found is None:
        return None
    price = call.found.price
    if parts.billing is not None and parts.billing.enforce_features:
        _check_features(call, body, price)
    if price.context is None or not call.dialect.generates:
        return None
    # Every token has a byte in the body, so that most requests are decided here.
    if len(body) + (request.output_cap or 0) <= price.context:
        return None
    return _check_context(call, body, price.context)


def _check_features(call: Call, body: bytes, price: Price) -> None:
    for name, feature in call.dialect.features_asked(body):
        if feature not in price.features:
            raise Refuse(
                400,
                "unsupported_parameter",
                f"The model {call.model!r} does not offer {feature}, which `{name}` asks for; leave"
                " it out, or use a model that does.",
                param=name,
            )


async def _check_context(call: Call, body: bytes, context: int) -> None:
    request = call.request
    assert request is not None
    cap = request.output_cap or 0
    if request.prompts > 1 or call.dialect.truncates(body):
        return
    tokens = 1 if body else 0
    if tokens + cap <= context:
        counters = call.metering.counters
        counted = await count_input(call, flat=False)
        tokens = counted if counters.is_own(call.model) else int(counted / _FOREIGN_MARGIN)
    if tokens + cap > context:
        raise Refuse(
            400,
            "context_length_exceeded",
            f"The model {call.model!r} has a context of {context:,} tokens, and this request needs"
            f" at least {tokens + cap:,} ({tokens:,} in the input, {cap:,} as the declared cap of"
            " the output). Shorten the input, or lower the cap.",
            param=call.dialect.input_name,
        )
