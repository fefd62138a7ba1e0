"""A model's weights as the fused kernels read them."""

from __future__ import annotations

import torch
from torch import Tensor

from autogaze.decoding import cluster
from autogaze.network.decoder import GazeDecoder
from autogaze.network.residual import ResidualMap


class PackedWeights:
    """The matrices of the decoder, input-major, norm weights folded in, in one dtype; in bfloat16 output-major besides,
    for the cluster kernel. And the parameters of its paste error."""

    def __init__(self, decoder: GazeDecoder, dtype: torch.dtype, residual_map: ResidualMap | None = None) -> None:
        self.decoder, self.dtype, self.residual_map = decoder, dtype, residual_map
        self.version = -1
        self.tensors = self._pack()

    def refresh(self) -> None:
        """Follow the parameters if training has changed them; the addresses stay, since graphs hold them."""
        modules = [part for part in (self.decoder, self.residual_map) if part is not None]
        version = sum(p._version for part in modules for p in part.parameters() if not p.is_inference())
        if version != self.version:
            for name, fresh in self._pack().items():
                self.tensors[name].copy_(fresh)
            self.version = version

    @torch.inference_mode(False)
    @torch.no_grad()
    def _pack(self) -> dict[str, Tensor]:
        trunk, dtype = self.decoder.model, self.dtype
        packed = {"embedding": trunk.embed_tokens.weight.to(dtype).clone(), "frequencies": trunk.frequencies.clone()}
        if self.residual_map is not None:
            packed |= {
                "error_weight": self.residual_map.weight.float().clamp(min=0),
                "strength": self.residual_map.strength.float().reshape(1).clone(),
            }
        else:
            packed |= {name: packed["frequencies"].new_zeros(0) for name in ("error_weight", "strength")}
        for i, layer in enumerate(trunk.layers):
            attention, before = layer.self_attn, layer.input_layernorm.weight.float()
            after, mlp = layer.post_attention_layernorm.weight.float(), layer.mlp
            halves = []
            for projection in (attention.q_proj, attention.k_proj):
                heads = projection.weight.float().unflatten(0, (attention.heads, 2, -1))  # (head, half, D/2, C)
                halves += [heads[:, 0].flatten(0, 1), heads[:, 1].flatten(0, 1)]
            matrices = {
                "wqk": torch.cat(halves) * before,
                "wv": attention.v_proj.weight.float() * before,
                "wo": attention.o_proj.weight,
                "wg": mlp.gate_proj.weight.float() * after,
                "wu": mlp.up_proj.weight.float() * after,
                "wd": mlp.down_proj.weight,
            }
            packed |= {f"{name}{i}": matrix.t().to(dtype).contiguous() for name, matrix in matrices.items()}
        final = trunk.norm.weight.float()
        packed["wl"] = (self.decoder.lm_head.weight.float() * final).t().to(dtype).contiguous()
        if (
            dtype == torch.bfloat16
            and trunk.layers[0].mlp.gate_proj.out_features % (cluster.SPLIT * trunk.layers[0].self_attn.heads) == 0
        ):
            packed |= cluster.pack_rows(self.decoder)
        packed["wt"] = (self.decoder.task_loss_prediction_head.weight.float() * final).to(dtype).contiguous()
        return packed
