"""Graph of the critics: the best of eight seeds for the price of about three clips."""

from __future__ import annotations

from ..toy_size import FRAMES, SIDE
from .format import Column, Graph, Node, Out
from .pieces import (
    PROMPT,
    SAMPLING,
    TOY_CLIP,
    TOY_FPS,
    TOY_MODEL,
    TOY_PROMPTS,
    TOY_VAE,
    WORLD,
    cfg_guider,
    custom_sampler,
    custom_sampling,
    decode,
    law_score,
    prompts,
    save_toy,
    schedule,
    size,
)

CRITIC = Out("critic", "critic")


def critic(key: str, name: str, title: str) -> Node:
    return Node(
        key=key,
        type="LatentPhysicsLoadPhysicsCritic",
        title=title,
        values={"name": f"toy/{name}.safetensors"},
    )


SIZE = Out("size", "LATENT")
TEXTS = Out("positive", "CONDITIONING"), Out("negative", "CONDITIONING")


def toy_best_of_n() -> Graph:
    best = {
        **SAMPLING,
        "latent_image": SIZE,
        "critic": CRITIC,
        "fps": TOY_FPS,
        "vae": TOY_VAE,
        "prompt": Out("prompt", "STRING"),
    }
    second = {
        "critic": Out("surprise", "critic"),
        "images": Out("decode_finished", "IMAGE"),
        "fps": TOY_FPS,
        "clips": 2,
        "seed": Out("best", "seeds"),
        "prompt": Out("prompt", "STRING"),
    }
    shown = {"critic": CRITIC, "fps": TOY_FPS, "images": Out("decode", "IMAGE")}
    return Graph(
        name="toy_world_best_of_n",
        note=f"""# The best of eight seeds for the price of about three clips

Press **Run**. Needs no download and no GPU.

1. **Best-of-N Sampler** starts eight seeds. After 3 and 6 of the 20 steps a physics critic looks at the half-
finished clips and
   the worse half is dropped; two are finished. The table shows every seed with every look.
2. The winner is, bit for bit, what its seed gives in SamplerCustomAdvanced. The plain sampler beside it has
the first seed:
   compare both law scores. One prompt proves little; docs/critics.md has the means.
3. **Keep Most Plausible** asks another critic about the two finished clips. Critics disagree: look before you
trust one.
4. **Physics Critic** shows when and where the winner looks wrong to the critic.
{TOY_PROMPTS}""",
        note_height=600,
        columns=[
            Column(
                title="1  Load",
                nodes=[
                    WORLD,
                    critic("critic", "toy_videomae", "Critic that chooses"),
                    critic("surprise", "toy_vjepa2", "Critic with a second opinion"),
                ],
            ),
            Column(
                title="2  Ask",
                nodes=[PROMPT, *prompts(Out("prompt", "STRING"), "", TOY_CLIP), size(SIDE, SIDE, FRAMES)],
            ),
            Column(
                title="3  Sampling",
                nodes=custom_sampling(cfg_guider(TOY_MODEL, 2.0, *TEXTS), "euler", schedule(TOY_MODEL, 20)),
            ),
            Column(
                title="4  Eight seeds, and one",
                nodes=[
                    Node(key="best", type="LatentPhysicsBestOfNSampler", values=best, height=760),
                    custom_sampler(SIZE, "plain", "Plain: the first seed"),
                ],
                width=560,
            ),
            Column(
                title="5  Decode",
                nodes=[
                    decode(Out("best", "output"), vae=TOY_VAE, title="Winner"),
                    decode(
                        Out("best", "finished"), key="decode_finished", vae=TOY_VAE, title="Both finished"
                    ),
                    decode(Out("plain", "output"), key="decode_plain", vae=TOY_VAE, title="Plain"),
                ],
            ),
            Column(
                title="6  Compare",
                nodes=[
                    *save_toy(Out("decode", "IMAGE"), "best_of_8"),
                    law_score(Out("decode", "IMAGE"), title="Winner"),
                    law_score(Out("decode_plain", "IMAGE"), key="score_plain", title="Plain"),
                ],
            ),
            Column(
                title="7  Second opinion",
                nodes=[
                    Node(key="second", type="LatentPhysicsKeepMostPlausible", values=second, height=460),
                    Node(key="shown", type="LatentPhysicsPhysicsCritic", values=shown, height=460),
                ],
                width=420,
            ),
        ],
    )


GRAPHS = (toy_best_of_n,)
