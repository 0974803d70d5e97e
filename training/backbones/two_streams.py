"""Attention of blocks with two streams, with a mask of keys: rows of padding are never without a key, and
nothing is masked where no prompt is padded, so that any fast attention can be used."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class KeyMaskedAttention:
    """diffusers' `HunyuanVideo15AttnProcessor2_0` with the mask `B L` of the words' rows as one of keys."""

    _attention_backend = None
    """Kernel that `compute.choose_attention` gives it; None is torch's own."""

    def __call__(
        self,
        attn: nn.Module,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        image_rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        from diffusers.models.attention_dispatch import dispatch_attention_fn
        from diffusers.models.embeddings import apply_rotary_emb

        heads, places = attn.heads, hidden_states.shape[1]
        q, k, v = (
            layer(hidden_states).unflatten(2, (heads, -1)) for layer in (attn.to_q, attn.to_k, attn.to_v)
        )
        q, k = attn.norm_q(q), attn.norm_k(k)
        if image_rotary_emb is not None:
            q, k = (apply_rotary_emb(x, image_rotary_emb, sequence_dim=1) for x in (q, k))
        words = [
            layer(encoder_hidden_states).unflatten(2, (heads, -1))
            for layer in (attn.add_q_proj, attn.add_k_proj, attn.add_v_proj)
        ]
        words[0], words[1] = attn.norm_added_q(words[0]), attn.norm_added_k(words[1])
        q, k, v = (torch.cat(pair, dim=1) for pair in zip((q, k, v), words))
        keys = key_mask(attention_mask, k.shape[1])
        out = dispatch_attention_fn(q, k, v, attn_mask=keys, backend=self._attention_backend).flatten(2)
        video = attn.to_out[1](attn.to_out[0](out[:, :places]))
        return video, attn.to_add_out(out[:, places:])


def key_mask(mask: Tensor | None, length: int) -> Tensor | None:
    """Mask `B L` of the last L of `length` keys -> `B 1 1 length`."""
    if mask is None:
        return None
    mask = nn.functional.pad(mask.bool(), (length - mask.shape[1], 0), value=True)
    return mask[:, None, None, :]


def nothing_masked(mask: Tensor) -> bool:
    """Whether no prompt of a batch is padded. Tensors without values (`plan`) count as that."""
    from torch._subclasses.fake_tensor import FakeTensor

    return isinstance(mask, FakeTensor) or mask.device.type == "meta" or bool(mask.all())
