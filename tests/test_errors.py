"""Each error carries a message and a hint, and ends the process with the exit code of its kind."""

import pickle

import pytest

from vsteer import errors


def every_error() -> list[type[errors.VsteerError]]:
    return [
        kind
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, errors.VsteerError)
    ]


@pytest.mark.parametrize("kind", every_error())
def test_an_error_carries_its_message_and_its_hint_also_out_of_another_process(
    kind: type[errors.VsteerError],
) -> None:
    error = pickle.loads(pickle.dumps(kind("layer 40 does not exist", hint="this model has layers 0 to 29")))
    assert type(error) is kind
    assert error.message == "layer 40 does not exist"
    assert error.hint == "this model has layers 0 to 29"
    assert str(error) == "layer 40 does not exist\nhint: this model has layers 0 to 29"


def test_only_a_usage_error_ends_with_2() -> None:
    assert {kind.__name__: kind.exit_code for kind in every_error() if kind.exit_code != 1} == {
        "UsageError": 2
    }
