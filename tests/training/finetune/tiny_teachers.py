"""Sizes of tiny VideoMAE and V-JEPA 2 models, as transformers' configurations name them."""

MAE = {
    "image_size": 32,
    "patch_size": 8,
    "num_frames": 8,
    "tubelet_size": 2,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
}
JEPA = {
    "crop_size": 32,
    "patch_size": 8,
    "frames_per_clip": 8,
    "tubelet_size": 2,
    "hidden_size": 48,
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "mlp_ratio": 2,
    "pred_hidden_size": 48,
    "pred_num_hidden_layers": 2,
    "pred_num_attention_heads": 2,
    "pred_num_mask_tokens": 2,
}
