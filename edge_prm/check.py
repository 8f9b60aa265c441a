"""Can this device's kernels be trusted with this bundle? Its golden trajectories tell."""

from __future__ import annotations

import platform
from dataclasses import dataclass

from edge_prm.bundle import Bundle
from edge_prm.encode import TOKENIZER_NAME, Encoder
from edge_prm.errors import BundleIntegrityError
from edge_prm.manifest import Manifest
from edge_prm.prm import PRM
from edge_prm.trajectory import Trajectory


@dataclass(frozen=True)
class Check:
    """What a device gave for the golden trajectories.

    Differences are of rewards, against full precision and (`drift`) against the device that exported the bundle.
    `streamed`: largest difference of a reward step by step from one shot; the CPU's int8 bundles give the same bits.
    """

    trusted: bool
    sentence: str
    rewards: int
    mean_difference: float
    max_difference: float
    drift: float
    tolerance: float
    streamed: float


def check_bundle(
    bundle: Bundle, threads: int | None = None, device: str = "auto", gpu_layers: int | None = None
) -> Check:
    """Score the golden trajectories of a bundle whose files are verified already.

    Raises BundleIntegrityError when there are none, or when the tokenizer gives other tokens than at export.
    """
    manifest = bundle.manifest
    if not manifest.golden or manifest.fidelity is None:
        raise BundleIntegrityError(bundle.folder, "it carries no golden trajectories")
    encoder = Encoder(bundle.folder / TOKENIZER_NAME, manifest)
    differences: list[float] = []
    drift = 0.0
    streamed = 0.0
    with PRM(bundle, threads=threads, device=device, gpu_layers=gpu_layers) as prm:
        for golden in manifest.golden:
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
    worst, tolerance = max(differences), manifest.fidelity.tolerance
    steady = streamed <= manifest.fidelity.stream_tolerance
    trusted = worst <= tolerance and steady
    return Check(
        trusted,
        _sentence(manifest, len(differences), worst, streamed, steady),
        len(differences),
        sum(differences) / len(differences),
        worst,
        drift,
        tolerance,
        streamed,
    )


def _sentence(manifest: Manifest, rewards: int, worst: float, streamed: float, steady: bool) -> str:
    place = f"{platform.machine() or 'this device'}"
    assert manifest.fidelity is not None, "it was looked at above"
    tolerance = manifest.fidelity.tolerance
    if worst > tolerance:
        reducible = manifest.recipe.name == "int8" and not manifest.recipe.reduce_range
        way_out = "export again with --reduce-range" if reducible else "try another version of the engine"
        return (
            f"The kernels of this device ({place}) cannot be trusted with this bundle: of {rewards} golden rewards one "
            f"is {worst:.4f} from full precision (limit {tolerance:g}); {way_out}."
        )
    if not steady:
        return (
            f"The kernels of this device ({place}) are accurate, and step by step a reward is {streamed:.4f} from that "
            "in one shot: scores of one kind must not be compared with the other's; try another version of the engine."
        )
    pieces = f"within {streamed:.4f}" if streamed else "the same bits"
    return (
        f"The kernels of this device ({place}) can be trusted: {rewards} golden rewards are within {worst:.4f} of full "
        f"precision (limit {tolerance:g}), and {pieces} step by step as in one shot."
    )
