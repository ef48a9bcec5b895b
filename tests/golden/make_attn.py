#!/usr/bin/env python3
"""Make the golden vectors of the attention layer (`attn`) from public implementations.

Packages and use as make_gd.py, whose file format this shares:

    pip install torch==2.13.0 transformers==5.23.0 numpy==2.4.6
    python make_attn.py --out DIR

The public code runs in float64 on inputs rounded to f32 first; results are rounded to f32 once.

    file                         reference
    attn_qwen3.safetensors       transformers Qwen3Attention, the whole layer: 2 key heads for 4 query heads, a norm of
                                 every head, a banded mask of 9 rows, over 40 rows: the ring wraps at an odd place
    attn_llama.safetensors       transformers LlamaAttention: no such norm, a window larger than the segment
    attn_carried.safetensors     torch scaled_dot_product_attention with an explicit banded mask, transformers'
                                 apply_rotary_pos_emb and Qwen3RMSNorm: keys and values carried in from 30 rows before,
                                 part of a head turns, norm before W_o

Names: inputs `x`, `params.*`, `state.*`, `dy`, `dstate.*`; expected `y`, `final.*`, `dx`, `grad.*`, `gradstate.*`. A
state that is not in the file is empty, a final-state gradient zero. T rows, H query heads, G key heads of d columns:

    x, y [T, D]   q [H*d, D]   k, v [G*d, D]   o [D, H*d]   q_norm, k_norm [d]   o_norm [H*d]
    keys, values [G, window, d], the entry of position p at p modulo window, keys after norm and turn
"""

import argparse
import hashlib
import json
import pathlib
import struct
import sys
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
import transformers
from transformers.models.llama import modeling_llama as llama
from transformers.models.qwen3 import modeling_qwen3 as qwen3

F32, F64 = torch.float32, torch.float64
EPSILON = 1e-6
failures = []


class _WideTorch:
    """The torch module, but float32 is float64."""
    float32 = float = torch.float64

    def __getattr__(self, attribute):
        return getattr(torch, attribute)


# D, H, G, d, window, T
SHAPES = {"attn_qwen3": (24, 4, 2, 16, 9, 40), "attn_llama": (24, 2, 2, 12, 64, 33), "attn_carried": (20, 6, 2, 16, 13, 21)}
SEEDS = {"attn_qwen3": 3, "attn_llama": 4, "attn_carried": 5}
THETA = {"attn_qwen3": 10000.0, "attn_llama": 500.0, "attn_carried": 1000000.0}
CARRIED, ROTARY = 30, 6  # of attn_carried: rows before, columns that turn


def turns(first, rows, columns, theta):
    """cos and sin [1, rows, columns] as LlamaRotaryEmbedding lays them out, in f64."""
    frequency = theta ** (-torch.arange(0, columns, 2, dtype=F64) / columns)
    angle = torch.arange(first, first + rows, dtype=F64)[:, None] * frequency
    angle = torch.cat([angle, angle], -1)[None]
    return angle.cos(), angle.sin()


def band(rows, before, window):
    """Additive mask [1, 1, rows, before + rows]: a row sees the last `window` entries up to its own."""
    newest = torch.arange(rows)[:, None] + before
    entry = torch.arange(before + rows)[None]
    seen = (entry <= newest) & (entry > newest - window)
    return torch.where(seen, 0.0, -torch.inf).to(F64)[None, None]


def ring(entries, first, window):
    """[rows, G, d] of positions first.. -> [G, window, d]."""
    kept = torch.zeros(entries.shape[1], window, entries.shape[2], dtype=entries.dtype)
    rows = range(max(0, entries.shape[0] - window), entries.shape[0])
    for r in rows:
        kept = kept.index_copy(1, torch.tensor([(first + r) % window]), entries[r][:, None])
    return kept


def whole_module(name):
    """Qwen3Attention or LlamaAttention, unmodified."""
    D, H, G, d, window, T = SHAPES[name]
    module, config_class, attention = ((qwen3, qwen3.Qwen3Config, qwen3.Qwen3Attention) if name == "attn_qwen3" else
                                       (llama, llama.LlamaConfig, llama.LlamaAttention))
    config = config_class(hidden_size=D, num_attention_heads=H, num_key_value_heads=G, head_dim=d, rms_norm_eps=EPSILON,
                          rope_theta=THETA[name], num_hidden_layers=1, attn_implementation="sdpa")

    def forward(t):
        layer = attention(config, 0).to(F64)
        given = {f"{n}_proj.weight": t[f"params.{n}"] for n in "qkvo"}
        given |= {f"{n}.weight": t[f"params.{n}"] for n in ("q_norm", "k_norm") if f"params.{n}" in t}
        assert given.keys() == dict(layer.named_parameters()).keys()
        kept = {}
        rotate = module.apply_rotary_pos_emb

        def watched(q, k, *rest, **more):  # the only way to see the keys as they are cached
            q, k = rotate(q, k, *rest, **more)
            kept["keys"] = k[0].transpose(0, 1)
            return q, k

        with mock.patch.object(module, "torch", _WideTorch()), mock.patch.object(module, "apply_rotary_pos_emb", watched):
            y = torch.func.functional_call(layer, given, args=(t["x"][None],), kwargs={
                "position_embeddings": turns(0, T, d, THETA[name]), "attention_mask": band(T, 0, window)})[0]
        values = (t["x"] @ t["params.v"].T).reshape(T, G, d)
        return {"y": y[0], "final.keys": ring(kept["keys"], 0, window), "final.values": ring(values, 0, window)}

    return forward


def own_norm(x, weight):
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + EPSILON) * weight


def pieces(name, before=0, rotary=None, public=True):
    """The same from its pieces: torch's attention, transformers' rotation and norm; or all written out."""
    D, H, G, d, window, T = SHAPES[name]
    rotary = rotary or d

    def norm(x, weight):
        if not public:
            return own_norm(x, weight)
        with mock.patch.object(qwen3, "torch", _WideTorch()):
            layer = qwen3.Qwen3RMSNorm(x.shape[-1], EPSILON)
            return torch.func.functional_call(layer.to(F64), {"weight": weight}, args=(x,))

    def rotate(x):  # [T, heads, d]
        cos, sin = turns(before, T, rotary, THETA[name])
        x, rest = x[..., :rotary], x[..., rotary:]
        if public:
            x = llama.apply_rotary_pos_emb(x.transpose(0, 1)[None], x.transpose(0, 1)[None], cos, sin)[0][0].transpose(0, 1)
        else:
            c, s = cos[0, :, None, :rotary // 2], sin[0, :, None, :rotary // 2]
            a, b = x[..., :rotary // 2], x[..., rotary // 2:]
            x = torch.cat([a * c - b * s, b * c + a * s], -1)
        return torch.cat([x, rest], -1)

    def forward(t):
        x = t["x"]
        q = (x @ t["params.q"].T).reshape(T, H, d)
        k, v = ((x @ t[f"params.{n}"].T).reshape(T, G, d) for n in "kv")
        if "params.q_norm" in t:
            q, k = norm(q, t["params.q_norm"]), norm(k, t["params.k_norm"])
        q, k = rotate(q), rotate(k)
        final, seen = {}, {}
        for what, entries in (("keys", k), ("values", v)):
            seen[what] = entries
            if before:
                old = t[f"state.{what}"]
                places = torch.arange(before - window, before) % window
                seen[what] = torch.cat([old[:, places].transpose(0, 1), entries])
            final[f"final.{what}"] = ring(seen[what], before + T - seen[what].shape[0], window)
        carried = window if before else 0
        mask = band(T, carried, window)
        if public:
            y = F.scaled_dot_product_attention(q.transpose(0, 1)[None], seen["keys"].transpose(0, 1)[None],
                                               seen["values"].transpose(0, 1)[None], attn_mask=mask, enable_gqa=True)[0]
        else:
            group = lambda u: u.transpose(0, 1).repeat_interleave(H // G, 0)
            scores = q.transpose(0, 1) @ group(seen["keys"]).transpose(1, 2) / d ** 0.5 + mask[0]
            y = scores.softmax(-1) @ group(seen["values"])
        y = y.transpose(0, 1).reshape(T, H * d)
        if "params.o_norm" in t:
            y = norm(y, t["params.o_norm"])
        return {"y": y @ t["params.o"].T, **final}

    return forward


def draw(name, qk_norm, state=False, o_norm=False):
    D, H, G, d, window, T = SHAPES[name]
    rng = np.random.RandomState(SEEDS[name])
    wide = lambda rows, columns: rng.standard_normal((rows, columns)) / np.sqrt(columns)
    t = {"params.q": wide(H * d, D), "params.k": wide(G * d, D), "params.v": wide(G * d, D), "params.o": wide(D, H * d)}
    if qk_norm:
        t |= {f"params.{n}": 1.5 + 0.3 * rng.standard_normal(d) for n in ("q_norm", "k_norm")}
    if o_norm:
        t["params.o_norm"] = 1 + 0.1 * rng.standard_normal(H * d)
    t |= {"x": rng.standard_normal((T, D)), "dy": rng.standard_normal((T, D))}
    for kind in ("state", "dstate") if state else ("dstate",):
        t |= {f"{kind}.{n}": rng.standard_normal((G, window, d)) for n in ("keys", "values")}
    return {n: np.ascontiguousarray(a, dtype=np.float32) for n, a in t.items()}


def gradient_name(name):
    return "dx" if name == "x" else name.replace("params.", "grad.").replace("state.", "gradstate.")


def differentiate(forward, arrays):
    t = {n: torch.from_numpy(a).to(F64) for n, a in arrays.items()}
    leaves = {n: u.requires_grad_() for n, u in t.items() if n == "x" or n.startswith(("params.", "state."))}
    out = forward(leaves)
    loss = sum((out[n] * t["d" + n.replace("final.", "state.")]).sum() for n in out)
    grads = torch.autograd.grad(loss, list(leaves.values()))
    out |= {gradient_name(n): g for n, g in zip(leaves, grads)}
    return {n: u.detach().contiguous() for n, u in out.items()}


def compare(what, got, want, bound=1e-12):
    error = {n: ((got[n] - want[n]).square().mean() / want[n].square().mean()).sqrt().item() for n in want}
    worst = max(error, key=error.get)
    print(f"  {what:<50}{error[worst]:8.1e} {worst}")
    if not error[worst] <= bound:
        failures.append(what)


def write(path, arrays, metadata):
    header, data = {"__metadata__": dict(sorted(metadata.items()))}, b""
    for n in sorted(arrays):
        raw = arrays[n].astype("<f4").tobytes()
        header[n] = {"dtype": "F32", "shape": list(arrays[n].shape), "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("."), metavar="DIR")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    options.out.mkdir(parents=True, exist_ok=True)
    versions = f"transformers {transformers.__version__} (Apache-2.0), torch {torch.__version__}"
    print("worst rms error / rms")
    for name, (D, H, G, d, window, T) in SHAPES.items():
        print(name)
        carried = name == "attn_carried"
        arrays = draw(name, name != "attn_llama", state=carried, o_norm=carried)
        if carried:
            result = differentiate(pieces(name, CARRIED, ROTARY), arrays)
            compare("f64 formula written out", differentiate(pieces(name, CARRIED, ROTARY, public=False), arrays), result)
            source = "torch.nn.functional.scaled_dot_product_attention, apply_rotary_pos_emb, Qwen3RMSNorm"
        else:
            result = differentiate(whole_module(name), arrays)
            compare("f64 pieces", differentiate(pieces(name), arrays), result)
            compare("f64 formula written out", differentiate(pieces(name, public=False), arrays), result)
            source = "Qwen3Attention" if name == "attn_qwen3" else "LlamaAttention"
            config = llama.LlamaConfig(hidden_size=D, num_attention_heads=H, head_dim=d, rope_theta=THETA[name])
            public = llama.LlamaRotaryEmbedding(config)(torch.zeros(1, dtype=F64), torch.arange(T)[None])
            own = turns(0, T, d, THETA[name])
            compare("angles, which transformers has in f32", {"cos": public[0], "sin": public[1]},
                    {"cos": own[0], "sin": own[1]}, 1e-6)
        metadata = {"hidden_size": D, "num_heads": H, "num_kv_heads": G, "head_dim": d, "window": window,
                    "rope_theta": THETA[name], "rotary_dim": ROTARY if carried else d,
                    "qk_norm": "false" if name == "attn_llama" else "true", "rms_norm_eps": EPSILON,
                    "rms_norm_before_every_linear": "true" if carried else "false",
                    "source": f"{source}; {versions}", "tolerance": "rms error / rms of each tensor, f32 arithmetic: 1e-5",
                    "reference": "computed in float64 from these f32 inputs, rounded to f32 once"}
        if carried:
            metadata["position"] = CARRIED
        path = options.out / f"{name}.safetensors"
        write(path, arrays | {n: u.numpy().astype(np.float32) for n, u in result.items()},
              {n: str(v) for n, v in metadata.items()})
        print(f"  {path.name} {path.stat().st_size} bytes, "
              f"sha256 {hashlib.sha256(path.read_bytes()).hexdigest()[:16]}")
    if failures:
        sys.exit("cross-checks failed: " + ", ".join(failures))


if __name__ == "__main__":
    main()
