"""Validate a bundle on this device against its golden rewards.

Two faults look alike in a reward: a device whose kernels give other rewards than the device that exported the bundle,
and a recipe that was too coarse for this checkpoint from the start. The verdict is one or the other.
"""

from __future__ import annotations

import platform
from dataclasses import dataclass

from edge_prm.backends.onnx.saturation import saturates
from edge_prm.bundle import Bundle
from edge_prm.encode import TOKENIZER_NAME, Encoder
from edge_prm.errors import BundleIntegrityError
from edge_prm.manifest import Fidelity, Manifest
from edge_prm.prm import PRM
from edge_prm.trajectory import Trajectory

TRUSTED, DEVICE, RECIPE = "trusted", "device", "recipe"
"""Verdicts: all is well; this device's kernels are at fault; the recipe is too coarse, on any device."""


@dataclass(frozen=True)
class Check:
    """What a device gave for the golden trajectories.

    Differences are of rewards, against full precision and (`drift`) against the device that exported the bundle.
    `streamed`: largest difference of a reward step by step from one shot; the CPU's int8 bundles give the same bits.
    `verdict` is one of `trusted`, `device` and `recipe`; `trusted` is whether it is the first.
    """

    trusted: bool
    verdict: str
    sentence: str
    rewards: int
    mean_difference: float
    max_difference: float
    drift: float
    tolerance: float
    streamed: float


@dataclass(frozen=True)
class _Measured:
    differences: list[float]
    drift: float
    streamed: float

    @property
    def worst(self) -> float:
        return max(self.differences)


def check_bundle(
    bundle: Bundle, threads: int | None = None, device: str = "auto", gpu_layers: int | None = None
) -> Check:
    """Score the golden trajectories of a bundle whose files are verified already.

    Raises BundleIntegrityError when there are none, or when the tokenizer gives other tokens than at export.
    """
    manifest = bundle.manifest
    if not manifest.golden or manifest.fidelity is None:
        raise BundleIntegrityError(bundle.folder, "it carries no golden trajectories")
    with PRM(bundle, threads=threads, device=device, gpu_layers=gpu_layers) as prm:
        measured = _measure(bundle, prm)
    verdict = _verdict(manifest, manifest.fidelity, measured)
    return Check(
        verdict == TRUSTED,
        verdict,
        _sentence(manifest, manifest.fidelity, measured, verdict),
        len(measured.differences),
        sum(measured.differences) / len(measured.differences),
        measured.worst,
        measured.drift,
        manifest.fidelity.tolerance,
        measured.streamed,
    )


def too_coarse(manifest: Manifest, clipped: bool | None = None) -> str:
    """The sentence for a bundle that was outside its tolerance when it was exported, with what to do.

    `clipped`: whether the 8-bit kernels of the device that exported it saturate, None when that is not known.
    """
    fidelity = manifest.fidelity
    assert fidelity is not None, "every export ends with golden trajectories"
    return (
        f"its recipe, {manifest.recipe.name}, is too coarse for this checkpoint: of {fidelity.rewards} golden rewards "
        f"one is {fidelity.max_difference:.4f} from full precision (limit {fidelity.tolerance:g}); "
        f"{_finer(manifest, clipped)}"
    )


def _measure(bundle: Bundle, prm: PRM) -> _Measured:
    encoder = Encoder(bundle.folder / TOKENIZER_NAME, bundle.manifest)
    differences: list[float] = []
    drift = streamed = 0.0
    for golden in bundle.manifest.golden:
        steps = list(golden.steps)
        if encoder.encode(Trajectory.of(golden.prompt, steps)).sha256() != golden.token_ids_sha256:
            raise BundleIntegrityError(bundle.folder, "its tokenizer gives other tokens here than at export")
        rewards = prm.score(golden.prompt, steps).rewards
        differences += [abs(a - b) for a, b in zip(rewards, golden.reference_rewards, strict=True)]
        drift = max([drift, *(abs(a - b) for a, b in zip(rewards, golden.bundle_rewards, strict=True))])
        with prm.session(golden.prompt) as session:
            for index, step in enumerate(steps):
                session.push(step, last=index == len(steps) - 1)
            streamed = max([streamed, *(abs(a - b) for a, b in zip(session.rewards, rewards, strict=True))])
    return _Measured(differences, drift, streamed)


def _verdict(manifest: Manifest, fidelity: Fidelity, measured: _Measured) -> str:
    """The recipe is at fault where the exporting device was outside the tolerance as well, and this one agrees with it
    as closely as the tolerance asks; the exporting device's rewards are in the golden trajectories."""
    if measured.streamed > fidelity.stream_tolerance:
        return DEVICE
    if measured.worst <= fidelity.tolerance:
        return TRUSTED
    at_export = max(
        abs(a - b)
        for golden in manifest.golden
        for a, b in zip(golden.bundle_rewards, golden.reference_rewards, strict=True)
    )
    return RECIPE if at_export > fidelity.tolerance and measured.drift <= fidelity.tolerance else DEVICE


def _sentence(manifest: Manifest, fidelity: Fidelity, measured: _Measured, verdict: str) -> str:
    place = f"{platform.machine() or 'this device'}"
    rewards, worst, tolerance = len(measured.differences), measured.worst, fidelity.tolerance
    clipped = saturated(manifest)
    if verdict == RECIPE:
        agree = f"none is more than {measured.drift:.4f} from" if measured.drift else "none differs from"
        innocent = "" if clipped else f", and the kernels of this device ({place}) are not the cause"
        return (
            f"The recipe of this bundle, {manifest.recipe.name}, is too coarse for its checkpoint{innocent}: of "
            f"{rewards} golden rewards one is {worst:.4f} from full precision (limit {tolerance:g}), and {agree} what "
            f"the exporting device gave; {_finer(manifest, clipped)}."
        )
    if worst > tolerance:
        remedy = _finer(manifest, clipped) if clipped else "try another version of the engine"
        return (
            f"The kernels of this device ({place}) cannot be trusted with this bundle: of {rewards} golden rewards one "
            f"is {worst:.4f} from full precision (limit {tolerance:g}), and one is {measured.drift:.4f} from what the "
            f"exporting device gave; {remedy}."
        )
    if verdict == DEVICE:
        return (
            f"The kernels of this device ({place}) are accurate, and step by step a reward is {measured.streamed:.4f} "
            f"from that in one shot (limit {fidelity.stream_tolerance:g}): rewards of one kind must not be compared "
            "with the other's; try another version of the engine."
        )
    pieces = f"within {measured.streamed:.4f}" if measured.streamed else "the same bits"
    closer = "; its 8-bit kernels saturate, and a bundle exported with --reduce-range is closer" if clipped else ""
    return (
        f"The kernels of this device ({place}) can be trusted: {rewards} golden rewards are within {worst:.4f} of full "
        f"precision (limit {tolerance:g}), and {pieces} step by step as in one shot{closer}."
    )


def saturated(manifest: Manifest) -> bool | None:
    """Whether this device's 8-bit kernels saturate with a bundle's weights; None where that is not known."""
    recipe = manifest.recipe
    return saturates() if recipe.name == "int8" and not recipe.reduce_range else False


def _finer(manifest: Manifest, clipped: bool | None) -> str:
    """What to do about a recipe that is too coarse; `clipped`: see `saturated`, None for another device than this."""
    name, backend = manifest.recipe.name, manifest.backend
    if backend == "gguf":
        finer = {
            **dict.fromkeys(("f32", "f16"), "as ONNX, with --fp32"),
            **dict.fromkeys(("bf16", "q8_0"), "with a finer recipe: --gguf --fp16 or --fp32"),
        }
        return f"export the checkpoint {finer.get(name, 'with a finer recipe: --gguf, --gguf --fp16 or --fp32')}"
    finer_onnx = "a finer recipe: --fp32" if backend == "optimum" else "a finer recipe: --gguf --fp16 or --fp32"
    if clipped:
        return f"this device's 8-bit kernels saturate: export the checkpoint with --reduce-range, or with {finer_onnx}"
    if manifest.recipe.reduce_range:
        return f"export the checkpoint without --reduce-range, or with {finer_onnx}"
    maybe = ", or with --reduce-range if the exporting device's 8-bit kernels saturate" if clipped is None else ""
    return f"export the checkpoint with {finer_onnx}{maybe}"
