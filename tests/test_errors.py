"""Every error survives pickling, so that a process pool or a worker of another framework gets the error itself."""

from __future__ import annotations

import copy
import multiprocessing
import pickle

import pytest

import edge_prm
from edge_prm import errors

ARGUMENTS: dict[type[errors.EdgePRMError], tuple[object, ...]] = {
    errors.ContextLengthError: (5000, 4096, "row 3"),
    errors.BundleNotFoundError: ("prm", "no such folder"),
    errors.BundleVersionError: ("prm", 9, 2),
    errors.BundleIntegrityError: ("prm/model.onnx", "truncated"),
    errors.CheckpointNotFoundError: ("owner/name", "no such folder"),
    errors.HeadNotFoundError: ("checkpoint", ["reward_head.pt", "score.weight"]),
    errors.UnsafePickleError: ("reward_head.pt", "os.system"),
    errors.UnsupportedArchitectureError: ("checkpoint", "rope_scaling", "plain rotary embeddings"),
    errors.OutputExistsError: ("out",),
    errors.MissingExtraError: ("cpu", ["onnxruntime"]),
}
LEAVES = [
    value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, errors.EdgePRMError)
]


def made(kind: type[errors.EdgePRMError]) -> errors.EdgePRMError:
    return kind(*ARGUMENTS.get(kind, ("what is wrong, where, and what to do",)))


@pytest.mark.parametrize("kind", LEAVES)
@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_every_error_survives_pickling(kind: type[errors.EdgePRMError], protocol: int) -> None:
    error = made(kind)
    error.add_note("a note") if hasattr(error, "add_note") else None
    for again in (pickle.loads(pickle.dumps(error, protocol)), copy.copy(error), copy.deepcopy(error)):
        assert type(again) is kind
        assert (str(again), again.args, vars(again)) == (str(error), error.args, vars(error))


def _fail(index: int) -> int:
    raise made(LEAVES[index])


def test_an_error_comes_back_from_a_pool_of_processes() -> None:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        for index, kind in enumerate(LEAVES):
            with pytest.raises(kind) as caught:
                pool.apply_async(_fail, (index,)).get(timeout=60)
            assert str(caught.value) == str(made(kind))


def test_errors_are_found_under_the_package() -> None:
    assert edge_prm.errors.ContextLengthError is errors.ContextLengthError
    assert issubclass(edge_prm.errors.InputError, edge_prm.EdgePRMError)
