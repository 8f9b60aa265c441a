"""Options of engines: those that all engines share, and each engine's own, passed through unchanged."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

import numpy as np

from edge_prm.errors import InputError

DEVICES = ("auto", "cpu", "gpu", "cuda")
"""What `device` may be; `cuda` may be followed by the number of a card: `cuda:1`."""
PROVIDER_OPTION = "provider."
"""Engine options whose names begin so are options of the execution provider."""


@dataclass(frozen=True)
class EngineOptions:
    """How a bundle is run.

    `threads`: None for one per core that this process may use. `device`: one of DEVICES; `gpu` is the GPU that the
    engine has. `gpu_layers`: how many layers the GPU holds, None for all that fit. `options`: the engine's own options
    by name, of ONNX Runtime those of SessionOptions (a name with a dot is a session config entry, one that begins with
    `provider.` an option of the execution provider), of llama.cpp those of llama_context_params. `provider`: an
    execution provider of ONNX Runtime in place of the device. `batch_tokens`: the most tokens that one run computes of
    several texts, 0 for one text at a time, None for the device's default (several on a GPU, one on a CPU).
    """

    threads: int | None = None
    device: str = "auto"
    gpu_layers: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    provider: str | None = None
    batch_tokens: int | None = None

    def checked(self) -> EngineOptions:
        """The same with plain integers and read-only `options`; InputError that names a bad value."""
        kind, _ = device_of(self.device)
        if self.provider is not None and (not isinstance(self.provider, str) or not self.provider):
            raise InputError(f"provider is {self.provider!r}; give the name of an execution provider of ONNX Runtime")
        if self.provider is not None and kind != "auto":
            raise InputError(f"provider is {self.provider!r} and device is {self.device!r}; choose one of them")
        threads, gpu_layers, batch = _plain(self.threads), _plain(self.gpu_layers), _plain(self.batch_tokens)
        if threads is not None and not _is_count(threads, 1):
            raise InputError(
                f"threads is {threads!r}; give a whole number from 1 up, or None for one per core that this process "
                "may use"
            )
        if gpu_layers is not None and not _is_count(gpu_layers, 0):
            raise InputError(f"gpu_layers is {gpu_layers!r}; give a whole number from 0 up, or None for all that fit")
        if batch is not None and not _is_count(batch, 0):
            raise InputError(f"batch_tokens is {batch!r}; give a whole number from 0 up, or None for the default")
        if not isinstance(self.options, Mapping) or not all(isinstance(name, str) for name in self.options):
            raise InputError(f"engine options are {self.options!r}; give a mapping from names to values")
        options = MappingProxyType(dict(self.options))
        return replace(self, threads=threads, gpu_layers=gpu_layers, options=options, batch_tokens=batch)


def device_of(device: str) -> tuple[str, int | None]:
    """The kind of a device and the number of the card, None where it is not given: ("cuda", 1) for `cuda:1`.

    InputError for none of DEVICES.
    """
    kind, colon, number = device.partition(":") if isinstance(device, str) else ("", "", "")
    if kind not in DEVICES or (colon and (kind != "cuda" or not re.fullmatch("[0-9]{1,3}", number))):
        raise InputError(f"device {device!r} is not one of {', '.join(DEVICES)} (or cuda:1, the second card)")
    return kind, int(number) if colon else None


def set_options(target: Any, options: Mapping[str, Any], known: Collection[str], engine: str) -> None:
    """Set each option as an attribute of an engine's own options object.

    InputError for a name that is not `known` (with those that are), and for a value that the engine does not take.
    """
    for name, value in options.items():
        if name not in known:
            raise InputError(f"{engine} has no option {name!r}; it has {', '.join(sorted(known))}")
        try:
            setattr(target, name, value)
        except (TypeError, ValueError, OverflowError) as error:
            reason = str(error).strip().splitlines()[0]
            raise InputError(f"{engine} does not take {value!r} for option {name!r} ({reason})") from None


def _plain(value: Any) -> Any:
    """A numpy integer as Python's own; anything else as it is."""
    return int(value) if isinstance(value, np.integer) else value


def _is_count(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least
