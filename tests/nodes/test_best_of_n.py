"""Best-of-N in ComfyUI's own samplers: a clip is the plain sampler's bit for bit, however often its
candidate paused."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytestmark = pytest.mark.comfy
STEPS = 6
SAMPLERS = [
    "euler",
    "euler_ancestral",
    "heun",
    "dpmpp_2m",
    "dpmpp_2m_sde",
    "dpmpp_sde",
    "uni_pc",
    "res_multistep",
    "res_multistep_ancestral",
    "lcm",
    "euler_cfg_pp",
    "dpmpp_2m_cfg_pp",
    "sa_solver",
    "dpm_adaptive",
]


class BySeed:
    """A judge that likes seeds in an order of its own, and remembers what it was shown."""

    reads = "latent"

    def __init__(self, best_first: Sequence[int]) -> None:
        self.order, self.seen = list(best_first), []

    def __call__(self, candidates: Sequence[Any], step: int, sigma: float) -> list[Any]:
        from latent_physics.nodes.host.best_of_n import Mark

        self.seen.append((step, sigma, [candidate.seed for candidate in candidates]))
        worth = {seed: 1 / (1 + place) for place, seed in enumerate(self.order)}
        return [
            Mark(step=step, sigma=sigma, plausibility=worth[candidate.seed], motion=1.0, parts={})
            for candidate in candidates
        ]


@pytest.fixture(scope="module")
def inputs(wan: Any, conditioning: Callable[..., Any]) -> Callable[..., dict[str, Any]]:
    """What SamplerCustomAdvanced takes, for a sampler's name."""
    import comfy.samplers
    from comfy_extras.nodes_custom_sampler import Noise_RandomNoise

    def make(sampler: str, seed: int = 5, model: Any = None, cfg: float = 3.0) -> dict[str, Any]:
        guider = comfy.samplers.CFGGuider(model or wan)
        guider.set_conds(conditioning(1), conditioning(2))
        guider.set_cfg(cfg)
        sigmas = comfy.samplers.calculate_sigmas(
            guider.model_patcher.get_model_object("model_sampling"), "simple", STEPS
        )
        return {
            "noise": Noise_RandomNoise(seed),
            "guider": guider,
            "sampler": comfy.samplers.sampler_object(sampler),
            "sigmas": sigmas,
            "latent_image": {"samples": torch.zeros(1, 16, 3, 8, 8)},
        }

    return make


def plain(given: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    from comfy_extras.nodes_custom_sampler import SamplerCustomAdvanced

    with torch.inference_mode():
        output, denoised = SamplerCustomAdvanced.execute(**given).args
    return output["samples"], denoised["samples"]


def tournament(given: dict[str, Any], judge: Any, batch: int = 1) -> Any:
    from latent_physics.nodes.host.best_of_n import BestOfN

    given = dict(given)
    latent = given.pop("latent_image")
    return BestOfN(**given, latent=latent, batch=batch, judge=judge)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_survivors_are_the_plain_samplers_clips_bit_for_bit(inputs: Any, sampler: str) -> None:
    """Four candidates, halved after steps 2 and 4; the winner was third."""
    judge = BySeed([7, 5, 6, 8])
    with torch.inference_mode():
        found = tournament(inputs(sampler), judge).run(4, (2 / STEPS, 4 / STEPS))
    assert [candidate.seed for candidate in found] == [7, 5, 6, 8]
    assert [len(seeds) for _, _, seeds in judge.seen] == [4, 2, 1]
    output, denoised = (part["samples"] for part in found[0].outputs)
    clip, estimate = plain(inputs(sampler, seed=7))
    assert torch.equal(output, clip)
    assert torch.equal(denoised, estimate)
    assert not torch.equal(clip, plain(inputs(sampler, seed=5))[0]), (
        "seeds must differ for this to prove anything"
    )


def test_churn_draws_the_same_noise_after_a_pause(inputs: Any) -> None:
    """Euler with churn draws from the global generator, which other candidates use meanwhile."""
    import comfy.samplers

    def churning(seed: int) -> dict[str, Any]:
        return {**inputs("euler", seed), "sampler": comfy.samplers.ksampler("euler", {"s_churn": 2.0})}

    with torch.inference_mode():
        found = tournament(churning(5), BySeed([6, 5]), batch=2).run(2, (0.5,))
    assert torch.equal(found[0].outputs[0]["samples"], plain(churning(6))[0])
    assert not torch.equal(plain(churning(6))[0], plain(inputs("euler", seed=6))[0]), (
        "churn does nothing here"
    )


def test_masked_latent_is_the_plain_samplers(inputs: Any) -> None:
    def masked(seed: int) -> dict[str, Any]:
        latent = {"samples": torch.ones(1, 16, 3, 8, 8), "noise_mask": torch.ones(1, 1, 3, 8, 8)}
        latent["noise_mask"][:, :, 0] = 0
        return {**inputs("dpmpp_2m", seed), "latent_image": latent}

    with torch.inference_mode():
        found = tournament(masked(5), BySeed([6, 5])).run(2, (0.5,))
    assert torch.equal(found[0].outputs[0]["samples"], plain(masked(6))[0])


def test_a_step_is_paid_once(inputs: Any, wan: Any) -> None:
    """8 candidates halved after steps 1 and 2 of 6: 8 + 4 + 4 x 2 steps, and no more passes of the network
    than that."""
    import comfy.patcher_extension
    from latent_physics.nodes.host.best_of_n import evaluations

    model, passes = wan.clone(), []

    def count(executor: Any, *args: Any, **kwargs: Any) -> Any:
        passes.append(1)
        return executor(*args, **kwargs)

    model.add_wrapper_with_key(comfy.patcher_extension.WrappersMP.PREDICT_NOISE, "count", count)
    with torch.inference_mode():
        tournament(inputs("dpmpp_2m", model=model), BySeed(range(5, 13))).run(8, (1 / STEPS, 2 / STEPS))
    assert len(passes) == evaluations(8, STEPS, [1, 2]) == 8 + 4 + 2 * 4


def test_marks_tell_each_moment(inputs: Any) -> None:
    given, judge = inputs("euler"), BySeed([8, 7, 6, 5])
    with torch.inference_mode():
        found = tournament(given, judge).run(4, (0.5,))
    first = float(given["sigmas"][2])
    assert judge.seen == [(3, first, [5, 6, 7, 8]), (STEPS, 0.0, [8, 7])]
    assert [len(candidate.marks) for candidate in found] == [2, 2, 1, 1]
    assert [candidate.outputs is None for candidate in found] == [False, False, True, True]
    assert all(not candidate.answers for candidate in found), "kept answers are let go"


def test_a_clip_that_is_still_noise_is_judged_by_its_last_estimate(inputs: Any, wan: Any) -> None:
    """The high-noise half of a two-expert graph ends before sigma 0: its output is noise, whoever made it."""
    from latent_physics.nodes.host import spaces
    from latent_physics.nodes.host.critics import CandidateJudge

    class Watch:
        name, reads, space = "watch", "latent", spaces.latent_space(wan)

        def __init__(self) -> None:
            self.seen: list[torch.Tensor] = []

        def judge(self, clip: torch.Tensor, fps: float, cond: Any) -> Any:
            self.seen.append(clip.clone())
            return SimpleNamespace(plausibility=torch.ones(1), motion=torch.ones(1), parts={})

    critic, given = Watch(), inputs("euler")
    given["sigmas"] = given["sigmas"][:4]
    judge = CandidateJudge(critic, wan, None, 16.0, None)
    with torch.inference_mode():
        (found,) = tournament(given, judge).run(1)
        clip, estimate = plain(given)
    inside = wan.get_model_object("latent_format").process_in
    assert float(given["sigmas"][-1]) > 0
    assert torch.equal(found.outputs[0]["samples"], clip), "what is put out stays the sampler's"
    assert torch.allclose(critic.seen[0], inside(estimate.float()), atol=1e-5)
    assert not torch.allclose(critic.seen[0], inside(clip.float()), atol=0.1)
    assert found.marks[0].sigma == float(given["sigmas"][2])


def test_batches_give_the_same_choice_and_nearly_the_same_clips(inputs: Any) -> None:
    with torch.inference_mode():
        found = tournament(inputs("dpmpp_2m"), BySeed([9, 6, 5, 7, 8]), batch=3).run(5, (0.5,))
    assert [candidate.seed for candidate in found] == [9, 6, 5, 7, 8]
    for candidate in found[:3]:
        clip, _ = plain(inputs("dpmpp_2m", seed=candidate.seed))
        torch.testing.assert_close(candidate.outputs[0]["samples"], clip, rtol=1e-4, atol=1e-4)


def test_samplers_that_draw_noise_run_one_at_a_time(inputs: Any) -> None:
    assert tournament(inputs("euler_ancestral"), BySeed([5]), batch=4).batch == 1
    assert tournament(inputs("euler"), BySeed([5]), batch=4).batch == 4


def test_a_batch_that_does_not_fit_the_memory_is_halved(inputs: Any, wan: Any) -> None:
    import comfy.model_management
    import comfy.patcher_extension

    model, sizes = wan.clone(), []

    def limited(executor: Any, x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        sizes.append(len(x))
        if len(x) > 2:
            raise comfy.model_management.OOM_EXCEPTION("out of memory")
        return executor(x, *args, **kwargs)

    model.add_wrapper_with_key(comfy.patcher_extension.WrappersMP.PREDICT_NOISE, "limit", limited)
    with torch.inference_mode():
        found = tournament(inputs("euler", model=model), BySeed(range(5, 9)), batch=4).run(4, (0.5,))
    assert sizes[0] == 4
    assert set(sizes[1:]) == {2}
    assert [candidate.seed for candidate in found] == [5, 6, 7, 8]


def test_interrupting_leaves_the_model_as_it_was(inputs: Any) -> None:
    import comfy.model_management

    given = inputs("euler")
    before = plain(inputs("euler"))[0]

    class Interrupting(BySeed):
        def __call__(self, *args: Any) -> list[Any]:
            comfy.model_management.interrupt_current_processing()
            return super().__call__(*args)

    with torch.inference_mode(), pytest.raises(comfy.model_management.InterruptProcessingException):
        tournament(given, Interrupting(range(5, 9))).run(4, (0.5,))
    assert torch.equal(plain(given)[0], before)
    assert "latent_physics.best_of_n" not in str(given["guider"].model_options)


def test_progress_runs_over_every_candidates_steps(inputs: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four candidates, halved after three of six steps: 4 x 3 + 2 x 3 steps."""
    import comfy.utils

    seen: list[tuple[int, int]] = []
    hook = lambda value, total, preview, **_: seen.append((value, total))  # noqa: E731
    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", hook)
    # newer versions leave out what follows within a tenth of a second
    monkeypatch.setattr(comfy.utils, "PROGRESS_THROTTLE_MIN_INTERVAL", 0, raising=False)
    with torch.inference_mode():
        tournament(inputs("dpmpp_2m"), BySeed(range(5, 9))).run(4, (0.5,))
    values = [value for value, total in seen if total == 18]
    assert values == list(range(1, 19))


def test_what_cannot_compete_is_refused(inputs: Any) -> None:
    import comfy.samplers
    from comfy_extras.nodes_custom_sampler import Noise_EmptyNoise

    with torch.inference_mode():
        with pytest.raises(ValueError, match="candidates is 0; it must be at least 1"):
            tournament(inputs("euler"), BySeed([5])).run(0)
        with pytest.raises(ValueError, match="holds 2 clips: set its batch to 1"):
            tournament(
                {**inputs("euler"), "latent_image": {"samples": torch.zeros(2, 16, 3, 8, 8)}}, BySeed([5])
            ).run(2)
        with pytest.raises(ValueError, match="wire RandomNoise"):
            tournament({**inputs("euler"), "noise": Noise_EmptyNoise()}, BySeed([0, 1])).run(2)
        blocks = {**inputs("euler"), "sampler": comfy.samplers.ksampler("ar_video")}
        with pytest.raises(ValueError, match="a pause would lose: set prune_first and prune_second to 0"):
            tournament(blocks, BySeed([5, 6])).run(2, (0.5,))
        with pytest.raises(ValueError, match="the sigmas hold no step"):
            tournament({**inputs("euler"), "sigmas": torch.zeros(1)}, BySeed([5])).run(1)


def test_one_candidate_is_the_plain_sampler(inputs: Any) -> None:
    judge = BySeed([5])
    with torch.inference_mode():
        (found,) = tournament(inputs("uni_pc"), judge).run(1, (0.2, 0.5))
    assert torch.equal(found.outputs[0]["samples"], plain(inputs("uni_pc"))[0])
    assert [step for step, _, _ in judge.seen] == [STEPS]


@pytest.mark.parametrize(
    ("steps", "fractions", "expected"),
    [
        (20, (0.15, 0.3), [3, 6]),
        (20, (0, 0), []),
        (4, (0.15, 0.3), [1]),
        (1, (0.5,), []),
        (20, (1.0, 0.5), [10, 19]),
    ],
)
def test_stops_lie_within_the_run(steps: int, fractions: tuple[float, ...], expected: list[int]) -> None:
    from latent_physics.nodes.host.best_of_n import stops

    assert stops(steps, fractions) == expected


def test_eight_candidates_cost_about_three_clips() -> None:
    from latent_physics.nodes.host.best_of_n import evaluations

    assert evaluations(8, 20, [3, 6]) == 8 * 3 + 4 * 3 + 2 * 14 == 64
