"""Two tiny reward models that judge arithmetic derivations. `examples/train_demo` trains them."""

from pathlib import Path

CHECKPOINTS = {"demo": "checkpoint", "demo-reference": "reference"}
"""Folder of each embedded checkpoint: `demo` has a sigmoid head, `demo-reference` a two-class one."""


def folder(name: str) -> Path:
    """Return the folder of an embedded checkpoint, `demo` or `demo-reference`; any other name is a ValueError."""
    if name not in CHECKPOINTS:
        raise ValueError(f"no embedded checkpoint is called {name!r}; choose one of {', '.join(CHECKPOINTS)}")
    return Path(__file__).parent / CHECKPOINTS[name]
