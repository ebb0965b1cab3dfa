"""What is compressed is read in any cut, also in the ways in which the standards are not kept."""

import zlib

import pytest

from inf_middleware.wire.encodings import decoder_of

PLAIN = b'data: {"usage": {"prompt_tokens": 3}}\n\n' * 20


@pytest.mark.parametrize("size", [1, 2, 3, 1000])
@pytest.mark.parametrize("window_bits", [15, -15], ids=["with its header", "without"])
def test_deflate_is_read_in_pieces_of_any_size(window_bits: int, size: int) -> None:
    packed = zlib.compress(PLAIN, 6, window_bits)
    decode = decoder_of(b"deflate")
    assert decode is not None
    pieces = [packed[start : start + size] for start in range(0, len(packed), size)]
    assert b"".join(decode(piece) for piece in pieces) == PLAIN


def test_what_is_no_deflate_at_all_is_refused() -> None:
    decode = decoder_of(b"deflate")
    assert decode is not None
    with pytest.raises(ValueError, match="invalid"):
        [decode(b"\xff") for _ in range(8)]
