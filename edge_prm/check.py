"""Can this device's kernels be trusted with this bundle? Its golden trajectories tell."""

from __future__ import annotations

import platform
from dataclasses import dataclass

from edge_prm.bundle import Bundle
from edge_prm.encode import TOKENIZER_NAME, Encoder
from edge_prm.errors import BundleIntegrityError
from edge_prm.prm import PRM
from edge_prm.trajectory import Trajectory


@dataclass(frozen=True)
class Check:
    """What a device gave for the golden trajectories.

    Differences are of rewards, against full precision and (`drift`) against the device that exported the bundle.
    `streamed_equal`: step by step gave the same bits as in one shot.
    """

    trusted: bool
    sentence: str
    rewards: int
    mean_difference: float
    max_difference: float
    drift: float
    tolerance: float
    streamed_equal: bool


def check_bundle(bundle: Bundle, threads: int | None = None) -> Check:
    """Score the golden trajectories of a bundle whose files are verified already.

    Raises BundleIntegrityError when there are none, or when the tokenizer gives other tokens than at export.
    """
    manifest = bundle.manifest
    if not manifest.golden or manifest.fidelity is None:
        raise BundleIntegrityError(bundle.folder, "it carries no golden trajectories")
    encoder = Encoder(bundle.folder / TOKENIZER_NAME, manifest)
    differences: list[float] = []
    drift = 0.0
    streamed_equal = True
    with PRM(bundle, threads=threads) as prm:
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
                streamed_equal = streamed_equal and session.rewards == rewards
    worst, tolerance = max(differences), manifest.fidelity.tolerance
    trusted = worst <= tolerance and streamed_equal
    return Check(
        trusted,
        _sentence(len(differences), worst, tolerance, streamed_equal, manifest.recipe.reduce_range),
        len(differences),
        sum(differences) / len(differences),
        worst,
        drift,
        tolerance,
        streamed_equal,
    )


def _sentence(rewards: int, worst: float, tolerance: float, streamed_equal: bool, reduced: bool) -> str:
    place = f"{platform.machine() or 'this device'}"
    if worst > tolerance:
        way_out = "try another version of the engine" if reduced else "export again with --reduce-range"
        return (
            f"The kernels of this device ({place}) cannot be trusted with this bundle: of {rewards} golden rewards one "
            f"is {worst:.4f} from full precision (limit {tolerance:g}); {way_out}."
        )
    if not streamed_equal:
        return (
            f"The kernels of this device ({place}) are accurate, and give other bits step by step than in one shot: "
            "scores of one kind must not be compared with the other's; try another version of the engine."
        )
    return (
        f"The kernels of this device ({place}) can be trusted: {rewards} golden rewards are within {worst:.4f} of full "
        f"precision (limit {tolerance:g}), and the same bits step by step as in one shot."
    )
