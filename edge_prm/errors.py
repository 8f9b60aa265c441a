"""Every error edge-prm raises on purpose. Messages are built here, so that each names the value, the place, the remedy.

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
├── ExportError (OSError)                  the output cannot be written
│   └── OutputExistsError (FileExistsError)
├── BackendError (RuntimeError)            the engine failed, or its numbers are not finite
└── MissingExtraError (ImportError)        an optional dependency is not installed
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence


class EdgePRMError(Exception):
    """Root of every error that edge-prm raises on purpose."""


class InputError(EdgePRMError, ValueError):
    """A prompt, step, row or option that cannot be scored."""


class ContextLengthError(InputError):
    def __init__(self, tokens: int, context_length: int, place: str = "") -> None:
        self.tokens = tokens
        self.context_length = context_length
        where = f"{place}: " if place else ""
        super().__init__(
            f"{where}the text is {tokens} tokens long and the model's context holds {context_length}; "
            "nothing is ever cut in silence: shorten the prompt or score fewer steps"
        )


class BundleError(EdgePRMError, ValueError):
    """A bundle that cannot be read or trusted."""


class BundleNotFoundError(BundleError, FileNotFoundError):
    def __init__(self, path: object, missing: str) -> None:
        super().__init__(f"{path} is not an edge-prm bundle: {missing}; write one with `edge-prm export`")


class BundleVersionError(BundleError):
    def __init__(self, path: object, found: object, supported: int) -> None:
        super().__init__(
            f"{path} has bundle format {found!r} and this edge-prm reads up to {supported}; "
            "upgrade with `pip install -U edge-prm` or export the checkpoint again"
        )


class BundleIntegrityError(BundleError):
    def __init__(self, path: object, reason: str) -> None:
        super().__init__(f"{path}: {reason}; copy the bundle again or export the checkpoint again")


class CheckpointError(EdgePRMError, ValueError):
    """A checkpoint that cannot be exported."""


class CheckpointNotFoundError(CheckpointError, FileNotFoundError):
    def __init__(self, source: object, reason: str) -> None:
        super().__init__(f"checkpoint {source}: {reason}; give a folder that holds config.json, or a hub id owner/name")


class HeadNotFoundError(CheckpointError):
    def __init__(self, source: object, looked_for: Sequence[str]) -> None:
        super().__init__(
            f"checkpoint {source} has no reward head (looked for {', '.join(looked_for)}); "
            "without its head a PRM is only a language model: download the missing file beside config.json"
        )


class UnsafePickleError(CheckpointError):
    def __init__(self, path: object, asked_for: str) -> None:
        super().__init__(
            f"{path} asks to load {asked_for}, and a reward head may hold tensors only; nothing was run: "
            "get the file from its authors again, or save it anew with torch.save(head.state_dict(), path)"
        )


class UnsupportedArchitectureError(CheckpointError, NotImplementedError):
    def __init__(self, source: object, what: str, supported: str) -> None:
        self.what = what
        self.supported = supported
        super().__init__(f"checkpoint {source}: {what} is not supported; this version exports {supported}")


class ExportError(EdgePRMError, OSError):
    """The output cannot be written."""


class OutputExistsError(ExportError, FileExistsError):
    def __init__(self, path: object) -> None:
        super().__init__(f"{path} already exists; choose another output folder or replace it with --force")


class BackendError(EdgePRMError, RuntimeError):
    """The engine failed, or gave numbers that are not finite."""


class MissingExtraError(EdgePRMError, ImportError):
    def __init__(self, extra: str, modules: Iterable[str]) -> None:
        self.extra = extra
        super().__init__(f'{", ".join(modules)} not installed; install with: pip install "edge-prm[{extra}]"')
