"""Layers as vLLM has them: a batch without rows, a residual beside the hidden state, q | k | v.

They have the weights of a Llama of transformers, so that both give the same numbers.
"""

from itertools import accumulate

import torch
from torch import nn
from torch.nn import functional


class Joined(nn.Module):
    """Queries, keys and values of one input, in one output; returned with a bias, as vLLM does."""

    def __init__(self, attention):
        super().__init__()
        maps = [attention.q_proj, attention.k_proj, attention.v_proj]
        self.weight = nn.Parameter(torch.cat([one.weight for one in maps]))
        self.output_sizes = [one.out_features for one in maps]

    def forward(self, hidden):
        return functional.linear(hidden, self.weight), None


class RowParallel(nn.Module):
    def __init__(self, linear):
        super().__init__()
        self.weight = linear.weight

    def forward(self, hidden):
        return functional.linear(hidden, self.weight), None


class Attention(nn.Module):
    """Each token attends to those of its own text before it."""

    def __init__(self, attention, config, rotate):
        super().__init__()
        self.qkv_proj, self.o_proj = Joined(attention), RowParallel(attention.o_proj)
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.size, self.rotate = attention.head_dim, rotate

    def forward(self, positions, hidden_states, texts=None):
        joined, _ = self.qkv_proj(hidden_states)
        q, k, v = joined.split(self.qkv_proj.output_sizes, dim=-1)
        out = torch.empty_like(q)
        for text in self.rotate.texts:
            parts = [one[text].unflatten(-1, (-1, self.size)).transpose(0, 1) for one in (q, k, v)]
            q_t, k_t = self.rotate(positions[text], parts[0], parts[1])
            groups = self.heads // self.kv_heads
            k_t, v_t = (one.repeat_interleave(groups, 0) for one in (k_t, parts[2]))
            seen = functional.scaled_dot_product_attention(q_t, k_t, v_t, is_causal=True)
            out[text] = seen.transpose(0, 1).flatten(1)
        return self.o_proj(out)[0]


class Rotate:
    """Rotary embeddings of transformers, and where the texts of the running step lie."""

    def __init__(self, rotary):
        self.rotary, self.texts = rotary, []

    def __call__(self, positions, q, k):
        from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

        cos, sin = self.rotary(q, positions[None])
        q, k = apply_rotary_pos_emb(q[None], k[None], cos, sin)
        return q[0], k[0]


class Norm(nn.Module):
    def __init__(self, norm):
        super().__init__()
        self.norm = norm

    def forward(self, hidden, residual=None):
        if residual is None:
            return self.norm(hidden)
        both = hidden + residual
        return self.norm(both), both


class Layer(nn.Module):
    def __init__(self, layer, config, rotate):
        super().__init__()
        self.self_attn, self.mlp = Attention(layer.self_attn, config, rotate), layer.mlp
        self.input_layernorm = Norm(layer.input_layernorm)
        self.post_attention_layernorm = Norm(layer.post_attention_layernorm)

    def forward(self, positions, hidden_states, residual):
        if residual is None:
            residual, hidden_states = hidden_states, self.input_layernorm(hidden_states)
        else:
            hidden_states, residual = self.input_layernorm(hidden_states, residual)
        hidden_states = self.self_attn(positions=positions, hidden_states=hidden_states)
        hidden_states, residual = self.post_attention_layernorm(hidden_states, residual)
        return self.mlp(hidden_states), residual


class EngineLlama(nn.Module):
    """A Llama, as an engine runs it: whole texts one after the other, (N,) ids -> (N, V) logits."""

    def __init__(self, llama):
        super().__init__()
        self.rotate = Rotate(llama.model.rotary_emb)
        self.layers = nn.ModuleList(
            Layer(layer, llama.config, self.rotate) for layer in llama.model.layers
        )
        self.embed, self.norm, self.head = (
            llama.model.embed_tokens,
            Norm(llama.model.norm),
            llama.lm_head,
        )

    @torch.no_grad()
    def forward(self, texts):
        lengths = [len(one) for one in texts]
        ends = list(accumulate(lengths))
        self.rotate.texts = [slice(end - n, end) for end, n in zip(ends, lengths, strict=True)]
        positions = torch.cat([torch.arange(n) for n in lengths])
        hidden, residual = self.embed(torch.tensor([one for text in texts for one in text])), None
        for layer in self.layers:
            hidden, residual = layer(positions, hidden, residual)
        return self.head(self.norm(hidden, residual)[0])
