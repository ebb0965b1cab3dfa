"""What the package offers is what can be imported from it."""

import inf_middleware


def test_all_is_sorted_and_importable() -> None:
    assert inf_middleware.__all__ == sorted(inf_middleware.__all__)
    for name in inf_middleware.__all__:
        assert hasattr(inf_middleware, name)


def test_public_classes_and_functions_say_what_they_are() -> None:
    for name in inf_middleware.__all__:
        thing = getattr(inf_middleware, name)
        assert thing.__doc__, name
