import math

import pytest
import torch
from latent_physics.methods.labels.taxonomy import random_labels
from latent_physics.methods.pila import CATEGORIES, label_batch, label_vector
from latent_physics.methods.pila.routing import Router, coactivation, label_recall, select


def test_selection_is_sparse_and_sums_to_one():
    logits = torch.randn(5, 8)
    for k in range(1, 9):
        routing = select(logits, k, 2.0)
        assert torch.equal(routing.selected.sum(dim=1), torch.full((5,), k))
        assert torch.equal(routing.weights > 0, routing.selected)
        torch.testing.assert_close(routing.weights.sum(dim=1), torch.ones(5))
        chosen = logits[0][routing.selected[0]]
        assert k == 8 or chosen.min() >= logits[0][~routing.selected[0]].max()


def test_weights_are_the_softmax_over_the_selected():
    logits = torch.tensor([[3.0, 0.0, 1.0, -1.0, 2.0, 0.5, 0.4, 0.3]])
    weights = select(logits, 2, 2.0).weights[0]
    high, low = math.exp(1.5), math.exp(1.0)
    assert float(weights[0]) == pytest.approx(high / (high + low))
    assert float(weights[4]) == pytest.approx(low / (high + low))


def test_no_expert_and_ties():
    none = select(torch.zeros(2, 8), 0, 2.0)
    assert not none.selected.any()
    assert torch.equal(none.weights, torch.zeros(2, 8))
    assert select(torch.zeros(1, 8), 3, 2.0).selected[0].tolist() == [True] * 3 + [False] * 5


@pytest.mark.parametrize("category", CATEGORIES)
def test_a_label_raises_its_expert_by_e_to_the_beta_over_tau(category):
    torch.manual_seed(1)
    router, cond = Router(32, 4, 2.0, 2.0), torch.randn(1, 32)
    index = CATEGORIES.index(category)
    plain = router(cond, None, 8).weights[0]
    labelled = router(cond, label_vector([category])[None], 8).weights[0]
    assert labelled[index] > plain[index]
    odds = [float(w[index] / (1 - w[index])) for w in (labelled, plain)]
    assert odds[0] / odds[1] == pytest.approx(math.e, rel=1e-4)


@pytest.mark.parametrize("labels", [["Rigid Body", "Collision"], ["Phase Change", "Fluid", "Thermal"]])
def test_several_labels_route_several_experts(labels):
    router = Router(32, 4, 2.0, 2.0)
    routing = router(torch.zeros(1, 32), label_batch([labels]), 4)
    for name in labels:
        assert routing.selected[0, CATEGORIES.index(name)]


@pytest.mark.parametrize("category", CATEGORIES)
def test_a_label_selects_its_expert_whatever_was_learned(category):
    """Learned logits stay below the prior: the worst-placed expert with a label ranks above the best without
    one."""
    router, index = Router(32, 4, 2.0, 2.0), CATEGORIES.index(category)
    with torch.no_grad():
        router.net[-1].bias.fill_(100.0)
        router.net[-1].bias[index] = -100.0
    assert router(torch.zeros(1, 32), label_vector([category])[None], 1).selected[
        0
    ].nonzero().flatten().tolist() == [index]
    assert not router(torch.zeros(1, 32), None, 7).selected[
        0, index
    ]  # without a label what was learned decides
    free = Router(32, 4, 2.0, 2.0, bounded=False)
    free.load_state_dict(router.state_dict())
    assert not free(torch.zeros(1, 32), label_vector([category])[None], 4).selected[0, index]


def test_label_recall_and_coactivation():
    logits = torch.tensor([[5.0, 4.0, 0, 0, 0, 0, 0, 0], [5.0, 0, 4.0, 0, 0, 0, 0, 0]])
    routing = select(logits, 2, 2.0)
    labels = label_batch([["Rigid Body", "Thermal"], ["Fluid"]])
    assert float(label_recall(routing, labels)) == pytest.approx(2 / 3)
    assert float(label_recall(routing, torch.zeros(2, 8))) == 1.0
    together = coactivation(routing)
    assert together[0, :3].tolist() == [1.0, 0.5, 0.5]
    assert together[1, 2] == 0.0


def test_label_vectors():
    assert label_vector({"fluid": 0.5, "Optical": 1.0}).tolist() == [0, 0, 0.5, 0, 0, 0, 0, 1.0]
    assert label_vector([]).sum() == 0
    with pytest.raises(ValueError, match="must be one of"):
        label_vector(["Plasma"])
    with pytest.raises(ValueError, match="0 to 1"):
        label_vector({"Fluid": 1.5})


def test_random_labels_keep_the_size_of_the_set():
    labels = label_batch([["Fluid"], ["Fluid", "Thermal", "Optical"], []])
    drawn = random_labels(labels, torch.Generator().manual_seed(0))
    assert drawn.sum(dim=1).tolist() == [1, 3, 0]
    many = torch.stack([random_labels(labels, torch.Generator().manual_seed(s)) for s in range(200)])
    assert many[:, 0].sum(dim=0).min() > 5  # every category occurs
