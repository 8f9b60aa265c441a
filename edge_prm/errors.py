"""Every error edge-prm raises on purpose. Messages are built here, so that each names the value, the place, the remedy.

All of them can be pickled, so they survive a process pool or a Ray worker.

EdgePRMError
├── InputError (ValueError)                a prompt, step, row or option that cannot be scored
│   └── ContextLengthError                 text longer than the model's context
├── BundleError (ValueError)               a bundle that cannot be trusted
│   ├── BundleNotFoundError (FileNotFoundError)
│   ├── BundleVersionError                 written by a newer edge-prm
│   └── BundleIntegrityError               truncated, edited, or a tokenizer that does not match
├── CheckpointError (ValueError)           a checkpoint that cannot be exported
│   ├── CheckpointNotFoundError (FileNotFoundError)
│   ├── HeadNotFoundError
│   ├── UnsafePickleError                  a reward_head.pt that asks for more than tensors
│   └── UnsupportedArchitectureError (NotImplementedError)
├── OutputError (OSError)                  a file or folder cannot be written
│   └── ExportError                        a bundle cannot be written
│       └── OutputExistsError (FileExistsError)
├── BackendError (RuntimeError)            the engine failed, or its numbers are not finite
│   ├── MissingKernelsError                the engine was not built for this device
│   └── DeviceMemoryError (MemoryError)    a device has too little memory
└── MissingExtraError (ImportError)        an optional dependency is not installed
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any


class EdgePRMError(Exception):
    """Root of every error that edge-prm raises on purpose."""

    def __reduce__(self) -> tuple[Any, ...]:
        # Exception's own way calls the class with the finished message, which leaves take for something else.
        return _unpickle, (type(self), self.args, self.__dict__)


def _unpickle(kind: type[EdgePRMError], args: tuple[Any, ...], attributes: dict[str, Any]) -> EdgePRMError:
    error: EdgePRMError = (OSError if issubclass(kind, OSError) else Exception).__new__(kind, *args)
    error.args = args
    error.__dict__.update(attributes)
    return error


class InputError(EdgePRMError, ValueError):
    """A prompt, step, row or option that cannot be scored."""


class ContextLengthError(InputError):
    """A text has more tokens than the model's context; `tokens` and `context_length` are both counts of tokens."""

    def __init__(self, tokens: int, context_length: int, place: str = "") -> None:
        self.tokens = tokens
        self.context_length = context_length
        where = f"{place}: " if place else ""
        super().__init__(
            f"{where}the text is {tokens} tokens long and the model's context holds {context_length}; "
            "inputs are never truncated: shorten the prompt or score fewer steps"
        )


class BundleError(EdgePRMError, ValueError):
    """A bundle that cannot be read or trusted."""


class BundleNotFoundError(BundleError, FileNotFoundError):
    """There is no bundle at a path."""

    def __init__(self, path: object, missing: str) -> None:
        super().__init__(f"{path} is not an edge-prm bundle: {missing}; write one with `edge-prm export`")


class BundleVersionError(BundleError):
    """A bundle was written by a newer edge-prm."""

    def __init__(self, path: object, found: object, supported: int) -> None:
        super().__init__(
            f"{path} has bundle format {found!r} and this edge-prm reads up to {supported}; "
            "upgrade with `pip install -U edge-prm` or export the checkpoint again"
        )


class BundleIntegrityError(BundleError):
    """A bundle is truncated or edited, or its tokenizer does not match."""

    def __init__(self, path: object, reason: str) -> None:
        super().__init__(f"{path}: {reason}; copy the bundle again or export the checkpoint again")


class CheckpointError(EdgePRMError, ValueError):
    """A checkpoint that cannot be exported."""


class CheckpointNotFoundError(CheckpointError, FileNotFoundError):
    """There is no checkpoint at a path or hub id, or a file of it is missing."""

    def __init__(
        self, source: object, reason: str, remedy: str = "give a folder that holds config.json, or a hub id owner/name"
    ) -> None:
        super().__init__(f"checkpoint {source}: {reason}; {remedy}")


class HeadNotFoundError(CheckpointError):
    """A checkpoint has no reward head."""

    def __init__(self, source: object, looked_for: Sequence[str]) -> None:
        super().__init__(
            f"checkpoint {source} has no reward head (looked for {', '.join(looked_for)}); "
            "without its head a PRM is only a language model: download the missing file into the checkpoint's folder, "
            "or name the format of a judge that answers with a label token (--format)"
        )


class UnsafePickleError(CheckpointError):
    """A reward_head.pt asks for more than tensors."""

    def __init__(self, path: object, asked_for: str) -> None:
        super().__init__(
            f"{path} asks to load {asked_for}, and a reward head may hold tensors only; nothing was run: "
            "get the file from its authors again, or save it again with torch.save(head.state_dict(), path)"
        )


class UnsupportedArchitectureError(CheckpointError, NotImplementedError):
    """A checkpoint has an architecture that this version does not export."""

    def __init__(self, source: object, what: str, supported: str) -> None:
        self.what = what
        self.supported = supported
        super().__init__(f"checkpoint {source}: {what} is not supported; this version exports {supported}")


class OutputError(EdgePRMError, OSError):
    """A file or folder cannot be written."""


class ExportError(OutputError):
    """A bundle cannot be written."""


class OutputExistsError(ExportError, FileExistsError):
    """The output folder of an export is there already, or it `appeared` while the export ran."""

    def __init__(self, path: object, appeared: bool = False) -> None:
        found = "appeared while the export ran, and is left as it is" if appeared else "already exists"
        super().__init__(f"{path} {found}; choose another output folder or replace it with --force")


class BackendError(EdgePRMError, RuntimeError):
    """The engine failed, or gave numbers that are not finite."""


class MissingKernelsError(BackendError):
    """The engine has the device's provider, and no kernels that run on this very device or with its driver."""


class DeviceMemoryError(BackendError, MemoryError):
    """A device, a GPU or the process itself, has too little memory for weights, activations or a KV cache."""


class MissingExtraError(EdgePRMError, ImportError):
    """An optional dependency is not installed; the message names the `pip install` line."""

    def __init__(self, extra: str, modules: Iterable[str]) -> None:
        self.extra = extra
        super().__init__(f'{", ".join(modules)} not installed; install with: pip install "edge-prm[{extra}]"')
