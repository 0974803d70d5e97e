import pytest
import torch
import torch.nn.functional as F
from latent_physics.methods.pila.flow import checked_flow, latent_flow, lucas_kanade, video_flow, warp


def texture(size=64, channels=3, seed=0):
    """Detail at several scales, as pictures have."""
    generator = torch.Generator().manual_seed(seed)
    parts = [
        (scale, torch.rand(1, channels, size // scale, size // scale, generator=generator))
        for scale in (4, 8, 16)
    ]
    return sum(scale / 16 * F.interpolate(part, size=(size, size), mode="bicubic") for scale, part in parts)


@pytest.mark.parametrize("motion", [(0.0, 0.0), (1.4, -0.6), (5.0, 3.0), (-7.5, 2.0)])
def test_a_shifted_texture_has_the_flow_of_the_shift(motion):
    after = texture()
    shift = torch.tensor(motion)[None, :, None, None].expand(1, 2, 64, 64)
    before = warp(after, shift)  # before(x) = after(x + shift)
    flow, confidence = checked_flow(before, after)
    inner = (slice(None), slice(None), slice(12, -12), slice(12, -12))
    error = (flow - shift)[inner].norm(dim=1)
    assert error.median() < 0.1
    assert confidence[inner].median() > 0.3


def test_a_flat_picture_is_not_trusted():
    _, certainty = lucas_kanade(torch.full((1, 3, 16, 16), 0.5), torch.full((1, 3, 16, 16), 0.5))
    assert certainty.max() < 1e-3


def test_video_flow_adds_up_over_a_latent_frame_in_latent_pixels():
    picture = texture(96)
    frames = []
    for n in range(9):
        shift = torch.tensor([-1.0 * n, 0.5 * n])[None, :, None, None].expand(1, 2, 96, 96)
        frames.append(warp(picture, shift)[..., 16:80, 16:80])
    flow, confidence = video_flow(torch.cat(frames).transpose(0, 1), 3, (8, 8))
    assert flow.shape == (2, 2, 8, 8)
    assert confidence.shape == (1, 2, 8, 8)
    middle = flow[:, :, 2:-2, 2:-2].mean(dim=(1, 2, 3))
    torch.testing.assert_close(middle, torch.tensor([4.0, -2.0]) / 8, atol=0.05, rtol=0)  # 4 frames, 8 pixels
    with pytest.raises(ValueError, match="do not belong"):
        video_flow(torch.zeros(3, 9, 16, 16), 4, (2, 2))


def test_latent_flow_of_a_moving_latent():
    picture = texture(32, 16)
    latent = torch.cat([warp(picture, torch.full((1, 2, 32, 32), -0.8 * n)) for n in range(4)]).transpose(
        0, 1
    )
    flow, confidence = latent_flow(latent)
    assert flow.shape == (2, 3, 32, 32)
    assert confidence.min() >= 0
    torch.testing.assert_close(flow[:, :, 8:-8, 8:-8].median(), torch.tensor(0.8), atol=0.1, rtol=0)
