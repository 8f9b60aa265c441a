"""Validate a bundle on this device against its golden rewards.

Two faults look alike in a reward: a device whose kernels give other rewards than the device that exported the bundle,
and a recipe that was too coarse for this checkpoint from the start. The verdict is one or the other.
"""

from __future__ import annotations

import platform
from dataclasses import dataclass
from typing import NamedTuple

from edge_prm.backends import EngineOptions
from edge_prm.backends.onnx.saturation import saturates
from edge_prm.bundle import Bundle
from edge_prm.errors import BundleIntegrityError
from edge_prm.manifest import Fidelity, Golden, Manifest
from edge_prm.prm import PRM
from edge_prm.recipe import ENGINES
from edge_prm.trajectory import Trajectory

TRUSTED, DEVICE, RECIPE = "trusted", "device", "recipe"
"""Verdicts: this device can be trusted; its kernels are at fault; the recipe is too coarse, on any device."""


@dataclass(frozen=True)
class Measured:
    """Absolute differences of golden rewards on this device.

    `mean_difference` and `max_difference` are from full precision, `device_drift` is the largest one from the device
    that exported the bundle. `incremental_difference`: max abs(incremental - full), of the steps of a trajectory pushed
    into a session from the same trajectory scored in one run; 0 for the CPU's int8 bundles, whose bits are the same.
    """

    reward_count: int
    mean_difference: float
    max_difference: float
    device_drift: float
    incremental_difference: float


@dataclass(frozen=True)
class Check:
    """What a device gave for the golden trajectories.

    `verdict` is one of `trusted`, `device` and `recipe`, and `sentence` says why, and what to do. `tolerance` is the
    limit of `max_difference`, `incremental_tolerance` that of `incremental_difference` on `device` (see PRM.device).
    """

    verdict: str
    sentence: str
    measured: Measured
    tolerance: float
    incremental_tolerance: float = 0.0
    device: str = "cpu"

    @property
    def trusted(self) -> bool:
        """Whether rewards of this bundle on this device can be relied on."""
        return self.verdict == TRUSTED

    @property
    def reward_count(self) -> int:
        """Number of golden rewards."""
        return self.measured.reward_count

    @property
    def mean_difference(self) -> float:
        """Mean difference from full precision."""
        return self.measured.mean_difference

    @property
    def max_difference(self) -> float:
        """Largest difference from full precision."""
        return self.measured.max_difference

    @property
    def device_drift(self) -> float:
        """Largest difference from the device that exported the bundle."""
        return self.measured.device_drift

    @property
    def incremental_difference(self) -> float:
        """Largest difference between step by step and one run."""
        return self.measured.incremental_difference

    def as_dict(self) -> dict[str, object]:
        """The check as JSON values."""
        return {
            "trusted": self.trusted,
            "verdict": self.verdict,
            "sentence": self.sentence,
            **vars(self.measured),
            "tolerance": self.tolerance,
            "incremental_tolerance": self.incremental_tolerance,
            "device": self.device,
        }


def check_bundle(bundle: Bundle, options: EngineOptions = EngineOptions()) -> Check:  # noqa: B008 - frozen
    """Score the golden trajectories of a bundle whose files are verified already.

    Raises BundleIntegrityError when there are none, or when the tokenizer gives other tokens than at export; what
    `edge_prm.load` raises for a bad option.
    """
    manifest = bundle.manifest
    if not manifest.golden or manifest.fidelity is None:
        raise BundleIntegrityError(bundle.folder, "it carries no golden trajectories")
    with PRM(bundle, options) as prm:
        device, measured = prm.device, _measure(bundle, prm)
    limits = _Limits(manifest.fidelity.tolerance, _incremental_tolerance(manifest, manifest.fidelity, device))
    verdict = _verdict(manifest, limits, measured)
    sentence = _sentence(manifest, limits, measured, verdict, _place(device))
    return Check(verdict, sentence, measured, limits.full_precision, limits.incremental, device)


def too_coarse(manifest: Manifest, clipped: bool | None = None) -> str:
    """The sentence for a bundle that was outside its tolerance when it was exported, with what to do.

    `clipped`: whether the 8-bit kernels of the device that exported it saturate, None when that is not known.
    """
    fidelity = manifest.fidelity
    assert fidelity is not None, "every export ends with golden trajectories"
    return (
        f"its recipe, {manifest.recipe.name}, is too coarse for this checkpoint: of {fidelity.reward_count} golden "
        f"rewards one is {fidelity.max_difference:.4f} from full precision (limit {fidelity.tolerance:g}); "
        f"{_finer(manifest, clipped)}"
    )


def _measure(bundle: Bundle, prm: PRM) -> Measured:
    differences: list[float] = []
    drifts: list[float] = []
    incremental: list[float] = []
    for golden in bundle.manifest.golden:
        steps = list(golden.steps)
        if prm.encode(Trajectory.of(golden.prompt, steps)).sha256() != golden.token_ids_sha256:
            raise BundleIntegrityError(bundle.folder, "its tokenizer gives other tokens here than at export")
        rewards = prm.score(golden.prompt, steps).rewards
        differences += _distances(rewards, golden.reference_rewards)
        drifts += _distances(rewards, golden.bundle_rewards)
        incremental += _distances(_pushed(prm, golden), rewards)
    mean = sum(differences) / len(differences)
    return Measured(len(differences), mean, max(differences), max(drifts), max(incremental))


def _pushed(prm: PRM, golden: Golden) -> tuple[float, ...]:
    """Rewards of a golden trajectory whose steps are pushed into a session."""
    with prm.session(golden.prompt) as session:
        for index, step in enumerate(golden.steps):
            session.push(step, last=index == len(golden.steps) - 1)
        return tuple(session.rewards)


def _distances(left: tuple[float, ...], right: tuple[float, ...]) -> list[float]:
    return [abs(a - b) for a, b in zip(left, right, strict=True)]


class _Limits(NamedTuple):
    """Tolerances on one device: from full precision, and step by step from one run."""

    full_precision: float
    incremental: float


def _incremental_tolerance(manifest: Manifest, fidelity: Fidelity, device: str) -> float:
    """That of the device where the recipe has one for it, else the export's own."""
    tolerances = manifest.recipe.tolerances
    of_device = tolerances.incremental_on(device)
    return of_device if of_device < tolerances.incremental else fidelity.incremental_tolerance


def _verdict(manifest: Manifest, limits: _Limits, measured: Measured) -> str:
    """The recipe is at fault where the exporting device was outside the tolerance as well, and this one agrees with it
    as closely as the tolerance asks; the exporting device's rewards are in the golden trajectories."""
    if measured.incremental_difference > limits.incremental:
        return DEVICE
    if measured.max_difference <= limits.full_precision:
        return TRUSTED
    at_export = max(max(_distances(golden.bundle_rewards, golden.reference_rewards)) for golden in manifest.golden)
    too_far = at_export > limits.full_precision
    return RECIPE if too_far and measured.device_drift <= limits.full_precision else DEVICE


def _sentence(manifest: Manifest, limits: _Limits, measured: Measured, verdict: str, place: str) -> str:
    clipped = saturated(manifest)
    if verdict == RECIPE:
        return _recipe_sentence(manifest, measured, limits.full_precision, clipped, place)
    if measured.max_difference > limits.full_precision:
        return _device_sentence(manifest, measured, limits.full_precision, clipped, place)
    incremental = measured.incremental_difference
    if verdict == DEVICE:
        return (
            f"The kernels of this device ({place}) are accurate, and step by step a reward is {incremental:.4f} "
            f"from that in one run (limit {limits.incremental:g}): do not compare rewards that were scored "
            "step by step with rewards that were scored in one run; try another version of the engine."
        )
    pieces = f"within {incremental:.4f}" if incremental else "the same bits"
    closer = "; its 8-bit kernels saturate, and a bundle exported with --reduce-range is closer" if clipped else ""
    return (
        f"The kernels of this device ({place}) can be trusted: {measured.reward_count} golden rewards are within "
        f"{measured.max_difference:.4f} of full precision (limit {limits.full_precision:g}), and {pieces} step by step "
        f"as in one run{closer}."
    )


def _recipe_sentence(manifest: Manifest, measured: Measured, tolerance: float, clipped: bool | None, place: str) -> str:
    drift = measured.device_drift
    agree = f"none is more than {drift:.4f} from" if drift else "none differs from"
    innocent = "" if clipped else f", and the kernels of this device ({place}) are not the cause"
    return (
        f"The recipe of this bundle, {manifest.recipe.name}, is too coarse for its checkpoint{innocent}: of "
        f"{measured.reward_count} golden rewards one is {measured.max_difference:.4f} from full precision (limit "
        f"{tolerance:g}), and {agree} what the exporting device gave; {_finer(manifest, clipped)}."
    )


def _device_sentence(manifest: Manifest, measured: Measured, tolerance: float, clipped: bool | None, place: str) -> str:
    remedy = _finer(manifest, clipped) if clipped else "try another version of the engine"
    return (
        f"The kernels of this device ({place}) cannot be trusted with this bundle: of {measured.reward_count} "
        f"golden rewards one is {measured.max_difference:.4f} from full precision (limit {tolerance:g}), and one is "
        f"{measured.device_drift:.4f} from what the exporting device gave; {remedy}."
    )


def _place(device: str) -> str:
    """The processor, and the device where it is another: `aarch64, cuda:0`."""
    machine = platform.machine() or "this device"
    return machine if device == "cpu" else f"{machine}, {device}"


def saturated(manifest: Manifest) -> bool | None:
    """Whether this device's 8-bit kernels saturate with a bundle's weights; None where that is not known."""
    return saturates() if manifest.recipe.saturates else False


def _finer(manifest: Manifest, clipped: bool | None) -> str:
    """What to do about a recipe that is too coarse; `clipped`: see `saturated`, None for another device than this."""
    recipe = manifest.recipe
    limit, engine = recipe.tolerances.full_precision, ENGINES.get(recipe.engine)
    options = [option for tolerance, option in (engine.finer if engine else ()) if tolerance < limit]
    finer = f"a finer recipe: {', '.join(options)}" if options else "full precision: as ONNX, with --fp32"
    if clipped:
        return f"this device's 8-bit kernels saturate: export the checkpoint with --reduce-range, or with {finer}"
    if recipe.reduce_range:
        return f"export the checkpoint without --reduce-range, or with {finer}"
    unknown = clipped is None and recipe.saturates
    maybe = ", or with --reduce-range if the exporting device's 8-bit kernels saturate" if unknown else ""
    return f"export the checkpoint with {finer}{maybe}"
