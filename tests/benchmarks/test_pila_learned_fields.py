import torch
from latent_physics.benchmarks.pila.learned_fields import ADAPTER, PIXELS, clips_of, violations
from latent_physics.methods.labels.taxonomy import CATEGORIES
from latent_physics.methods.pila.files import load_adapter
from latent_physics.methods.pila.residuals import TERMS
from latent_physics.toyworld import WORLDS
from latent_physics.training.backbones import load_backbone


def test_right_and_broken_clips_are_of_the_same_scenes_and_every_term_is_read():
    world = WORLDS["optical"]
    real, fast = (clips_of(world, 2, kind, seed=5) for kind in ("real", "constant x 2"))
    assert torch.equal(real[:, :, 0], fast[:, :, 0])
    assert not torch.equal(real[:, :, 8], fast[:, :, 8])
    category = CATEGORIES.index("Optical")
    adapter, backbone = load_adapter(ADAPTER)[0], load_backbone("toy", parts=("vae",))
    found = [violations(adapter, backbone, clips, category, "optical") for clips in (real, fast)]
    for terms in found:
        assert set(terms) == {*TERMS["Optical"], PIXELS}
        assert all(len(values) == 2 for values in terms.values())
    assert max(found[0][PIXELS]) < min(found[1][PIXELS])
