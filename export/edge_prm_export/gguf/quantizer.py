"""llama.cpp's own quantizer: a GGUF file in, one in another type out."""

from __future__ import annotations

import os
from pathlib import Path

from edge_prm.backends.gguf.llama_cpp import capture_log, reason
from edge_prm.errors import ExportError
from edge_prm_export.progress import Progress

DOWN_TYPES = {"Q4_K_M": "Q6_K"}
"""Types whose `ffn_down` tensors are all of a better type, which llama.cpp gives to half of the layers: 4% more
bytes."""


def quantize_file(source: Path, target: Path, name: str, progress: Progress) -> None:
    """Write `source` again in the type `name`; the embedding stays Q8_0. ExportError with llama.cpp's reason."""
    import llama_cpp

    options = llama_cpp.llama_model_quantize_default_params()
    options.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{name}")
    options.token_embedding_type = options.output_tensor_type = llama_cpp.GGML_TYPE_Q8_0
    options.allow_requantize = True  # for the embedding, which has its type already
    if name in DOWN_TYPES:
        overrides = (llama_cpp.llama_model_tensor_override * 2)()  # the last one is empty: the end
        overrides[0].pattern, overrides[0].type = b"ffn_down", getattr(llama_cpp, f"GGML_TYPE_{DOWN_TYPES[name]}")
        options.tt_overrides = overrides
    with progress(f"quantizing to {name}", 1) as advance, capture_log() as lines:
        failed = llama_cpp.llama_model_quantize(os.fsencode(source), os.fsencode(target), options)
        advance(1)
    if failed:
        raise ExportError(f"llama.cpp cannot quantize to {name}: {reason(lines)}; choose another --gguf-type")
