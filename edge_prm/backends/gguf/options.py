"""Options of llama.cpp's context that a user may set, passed through unchanged."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edge_prm.backends.options import set_options

_OURS = frozenset(
    ("n_ctx", "n_batch", "n_ubatch", "n_seq_max", "n_rs_seq", "n_outputs_max", "n_outputs_max_per_seq", "n_threads",
     "n_threads_batch", "cb_eval", "cb_eval_user_data", "abort_callback", "abort_callback_data", "embeddings",
     "pooling_type", "ctx_type", "kv_unified", "samplers", "n_samplers", "ctx_other")
)  # fmt: skip
"""Fields of llama_context_params that the runtime sets itself, or that another value of would break."""


def set_context_options(params: Any, options: Mapping[str, Any]) -> None:
    """Set fields of a llama_context_params; InputError for a name that is unknown or ours, or a value it refuses."""
    known = [name for name, *_ in params._fields_ if name not in _OURS]
    set_options(params, options, known, "llama.cpp")
