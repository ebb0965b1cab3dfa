import pytest

from inf_middleware.wire.dialect import Dialect
from inf_middleware.wire.dialects import KNOWN
from inf_middleware.wire.ending import clean_end
from inf_middleware.wire.request import Request


@pytest.mark.parametrize("dialect", KNOWN, ids=lambda one: one.name)
def test_a_stream_is_ended_whatever_its_server_named_it(dialect: Dialect) -> None:
    request = Request(stream=True, wants_usage=True)
    reader = dialect.answer(request)
    reader.response_id = reader.model = (
        "\ud83d"  # half of a character: `json.loads` lets it through
    )
    end = clean_end(dialect, request, reader, call_id="c", created=1, usage=None)
    assert end
    end.decode()
