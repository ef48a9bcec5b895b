#!/usr/bin/env python3
"""Make the golden vectors of the layer `xlstm` from public implementations.

Packages and use as make_gd.py, whose file format this shares:

    pip install torch==2.13.0 transformers==5.24.0 mlstm_kernels==2.0.6 xlstm==2.0.6 einops numpy==2.4.6
    python make_xlstm.py --out DIR

The public code runs in float64 on inputs rounded to f32 first; results are rounded to f32 once. Gradients are those of
autograd through the recurrent forms, row by row: the chunk forms of the packages come with gradients of their own that
leave out the normaliser.

    file                         reference
    xlstm_mlstm.safetensors      transformers xLSTMLayer, the whole layer, from a document's start
    xlstm_carried.safetensors    mlstm_kernels mlstm_recurrent_step__native_fw between projections and norms written out
                                 here: states carried in and out with gradients, norm before W_o
    xlstm_slstm.safetensors      xlstm's sLSTM cell ("vanilla") and MultiHeadLayerNorm between projections and a
                                 convolution written out here, from a document's start
    xlstm_slstm_carried.safetensors  the same with states carried, norms before the linears

Names: inputs `x`, `params.*`, `state.*`, `dy`, `dstate.*`; expected `y`, `final.*`, `dx`, `grad.*`, `gradstate.*`. A
state that is not in the file is zero. T rows, H heads of d columns:

    x, y [T, D]   q, k, v, og [H*d, D]   o [D, H*d]   i, f [H, D]   i_bias, f_bias [H]   head_norm, o_norm [H*d]
    memory [H, d, d], key by value   normaliser [H, d]   stabiliser [H, 1]
    sLSTM: i, f, z, og [H*d, D] and their biases [H*d]   r [H, 4, d, d], output by input   conv [D, 4], conv_norm [D]
    cell [H, 5, d]: h, c, n, m, and what r made of h for the output gate   conv [H, 3, D/H], newest first
"""

import argparse
import hashlib
import pathlib
import sys
from importlib.metadata import version
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
import transformers.utils
from mlstm_kernels.torch.chunkwise.native.fw import mlstm_chunkwise_fw
from mlstm_kernels.torch.parallel.native_stablef.fw import mlstm_parallel_fw
from mlstm_kernels.torch.recurrent.native_step import mlstm_recurrent_step__native_fw
from xlstm.blocks.slstm.src.vanilla import slstm_forward, slstm_pointwise_function_registry
from xlstm.components.ln import MultiHeadLayerNorm

from make_attn import differentiate, failures, write
import make_attn

with mock.patch.object(transformers.utils, "is_xlstm_available", lambda: False):  # its own layer, not the package's
    from transformers.models.xlstm import modeling_xlstm as public
assert not public.external_xlstm

F64 = torch.float64
# the layer names float32 as the type of its states: run it with that name meaning float64
widened = mock.patch.object(public, "torch", make_attn._WideTorch())

EPSILON, CAP, TAPS = 1e-6, 15.0, 4
GATES = ("i", "f", "z", "og")

# D, H, d, T
SHAPES = {"xlstm_mlstm": (12, 3, 16, 150), "xlstm_carried": (16, 2, 32, 70), "xlstm_slstm": (12, 3, 16, 40),
          "xlstm_slstm_carried": (12, 2, 16, 40)}
SEEDS = {"xlstm_mlstm": 3, "xlstm_carried": 4, "xlstm_slstm": 5, "xlstm_slstm_carried": 6}


def compare(what, got, want, bound=1e-12):
    seen = [n for n in want if n in got and want[n].abs().max() > 0]
    make_attn.compare(what, {n: got[n] for n in seen}, {n: want[n] for n in seen}, bound)


def part(t, prefix):
    return {n.removeprefix(prefix): u for n, u in t.items() if n.startswith(prefix)}


def state_of(t, name, *shape):
    return t[f"state.{name}"] if f"state.{name}" in t else torch.zeros(shape, dtype=F64)


def rms_norm(u, weight):
    return u * torch.rsqrt((u * u).mean(-1, keepdim=True) + EPSILON) * weight


def layer_norm(u, weight):
    centred = u - u.mean(-1, keepdim=True)
    return centred * torch.rsqrt((centred * centred).mean(-1, keepdim=True) + EPSILON) * weight.reshape(u.shape[-2:])


def cap(u):
    return CAP * torch.tanh(u / CAP)


# ---------------------------------------------------------------------------------- mLSTM

def transformers_layer(shape):
    D, H, d, T = shape
    config = public.xLSTMConfig(hidden_size=D, num_heads=H, num_hidden_layers=1, qk_dim_factor=H * d / D,
                                v_dim_factor=H * d / D, gate_soft_cap=CAP, eps=EPSILON, norm_eps=EPSILON,
                                weight_mode="single", mode="inference", chunk_size=1024, use_bias=False,
                                inference_state_dtype="float32", norm_reduction_force_float32=False)
    with widened:
        module = public.xLSTMLayer(config).to(F64)

    def forward(t):
        p = part(t, "params.")
        weights = {"q.weight": p["q"], "k.weight": p["k"], "v.weight": p["v"], "ogate_preact.weight": p["og"],
                   "igate_preact.weight": p["i"], "igate_preact.bias": p["i_bias"], "fgate_preact.weight": p["f"],
                   "fgate_preact.bias": p["f_bias"], "multihead_norm.weight": p["head_norm"],
                   "out_proj.weight": p["o"]}
        with widened:
            y, (C, n, m) = torch.func.functional_call(module, weights, (t["x"].unsqueeze(0),))
        return {"y": y[0], "final.memory": C[0], "final.normaliser": n[0], "final.stabiliser": m[0]}

    return forward


def public_cell(q, k, v, i, f, C, n, m):
    rows, state = [], (C[None], n[None], m[None])
    for t in range(q.shape[0]):
        h, state = mlstm_recurrent_step__native_fw(*state, q[t][None], k[t][None], v[t][None], i[t][None, :, None],
                                                   f[t][None, :, None], eps=EPSILON, dtype_state=F64)
        rows.append(h[0])
    return torch.stack(rows), *(s[0] for s in state)


def own_cell(q, k, v, i, f, C, n, m):
    rows, q = [], q * q.shape[-1] ** -0.5
    for t in range(q.shape[0]):
        kept, put = F.logsigmoid(f[t])[:, None] + m, i[t][:, None]
        m = torch.maximum(kept, put)
        forget, write_ = (kept - m).exp(), (put - m).exp()
        C = forget[..., None] * C + write_[..., None] * torch.einsum("hk,hv->hkv", k[t], v[t])
        n = forget * n + write_ * k[t]
        below = torch.maximum((q[t] * n).sum(-1, keepdim=True).abs(), (-m).exp()) + EPSILON
        rows.append(torch.einsum("hk,hkv->hv", q[t], C) / below)
    return torch.stack(rows), C, n, m


def mlstm_layer(shape, cell, o_norm):
    D, H, d, T = shape

    def forward(t):
        p, x = part(t, "params."), t["x"]
        q, k, v, og = ((x @ p[n].T).reshape(T, H, d) for n in ("q", "k", "v", "og"))
        i, f = (cap(x @ p[n].T + p[f"{n}_bias"]) for n in "if")
        h, C, n, m = cell(q, k, v, i, f, state_of(t, "memory", H, d, d), state_of(t, "normaliser", H, d),
                          state_of(t, "stabiliser", H, 1))
        y = (torch.sigmoid(og) * layer_norm(h, p["head_norm"])).reshape(T, H * d)
        if o_norm:
            y = rms_norm(y, p["o_norm"])
        return {"y": y @ p["o"].T, "final.memory": C, "final.normaliser": n, "final.stabiliser": m}

    return forward


def check_forms(t, shape):
    """The public recurrent, chunk and parallel forms against each other: outputs and states."""
    D, H, d, T = shape
    p, x = part(t, "params."), t["x"]
    q, k, v = ((x @ p[n].T).reshape(T, H, d) for n in "qkv")
    i, f = (cap(x @ p[n].T + p[f"{n}_bias"]) for n in "if")
    nothing = torch.zeros(H, d, d, dtype=F64), torch.zeros(H, d, dtype=F64), torch.zeros(H, 1, dtype=F64)
    h, C, n, m = public_cell(q, k, v, i, f, *nothing)
    wide = lambda u: u.transpose(0, 1)[None]
    out = mlstm_chunkwise_fw(wide(q), wide(k), wide(v), i.T[None], f.T[None], return_last_states=True,
                             chunk_size=T // 2, eps=EPSILON)
    compare("f64 mlstm_chunkwise_fw against the step", {"h": out[0][0].transpose(0, 1), "C": out[3][0][0],
            "n": out[3][1][0], "m": out[3][2][0]}, {"h": h, "C": C, "n": n, "m": m})
    # without a first state m is -infinity there, and N e^-m the same but for the epsilon
    compare("f64 mlstm_parallel_fw (stablef), but for epsilon",
            {"h": mlstm_parallel_fw(wide(q), wide(k), wide(v), i.T[None], f.T[None], eps=0)[0][0].transpose(0, 1)},
            {"h": h}, 1e-4)


# ---------------------------------------------------------------------------------- sLSTM

def public_slstm(raw, r, cell):
    """raw [T, H, 4, d]; the pointwise function takes gates outermost"""
    T, H, _, d = raw.shape
    seen = []

    def pointwise(*arguments, constants):
        states, gates = slstm_pointwise_function_registry["slstm"](*arguments, constants)
        seen.append(states)
        return states, gates

    slstm_forward(raw.transpose(1, 2).reshape(T, 1, 4 * H * d), cell[:, :4].transpose(0, 1).reshape(4, 1, H * d),
                  r.reshape(H, 4 * d, d), torch.zeros(4 * H * d, dtype=F64), pointwise)
    rows = torch.stack([s[0].reshape(H, d) for s in seen])
    past = torch.einsum("hji,hi->hj", r[:, 3], rows[-2])
    return rows, torch.cat([seen[-1].reshape(4, H, d).transpose(0, 1), past[:, None]], 1)


def own_slstm(raw, r, cell):
    h, c, n, m, past = cell.unbind(1)
    rows = []
    for t in range(raw.shape[0]):
        sums = torch.einsum("hgji,hi->hgj", r, h)
        i, f, z, o = (raw[t] + sums).unbind(1)
        kept = F.logsigmoid(f) + m
        first = n == 0
        m = torch.where(first, i, torch.maximum(kept, i))
        forget, put = torch.where(first, 0, (kept - m).exp()), (i - m).exp()
        c, n = forget * c + put * torch.tanh(z), forget * n + put
        h, past = torch.sigmoid(o) * c / n, sums[:, 3]
        rows.append(h)
    return torch.stack(rows), torch.stack([h, c, n, m, past], 1)


def slstm_layer(shape, cell, norms, public_norm=True):
    D, H, d, T = shape
    norm = MultiHeadLayerNorm(ndim=H * d, weight=True, eps=EPSILON).to(F64)

    def forward(t):
        p, x = part(t, "params."), t["x"]
        before = state_of(t, "conv", H, TAPS - 1, D // H).transpose(0, 1).reshape(TAPS - 1, D)
        u = torch.cat([before.flip(0), x])
        mixed = sum(p["conv"][:, j] * u[TAPS - 1 - j:TAPS - 1 - j + T] for j in range(TAPS))
        mixed = mixed * torch.sigmoid(mixed)
        if norms:
            mixed = rms_norm(mixed, p["conv_norm"])
        raw = torch.stack([((mixed if n in "if" else x) @ p[n].T + p[f"{n}_bias"]).reshape(T, H, d) for n in GATES], 2)
        h, last = cell(raw, p["r"], state_of(t, "cell", H, 5, d))
        if public_norm:  # the package keeps its weight less one
            y = torch.func.functional_call(norm, {"weight": p["head_norm"] - 1}, (h.transpose(0, 1)[None],))
            y = y[0].transpose(0, 1)
        else:
            y = layer_norm(h, p["head_norm"])
        y = y.reshape(T, H * d)
        if norms:
            y = rms_norm(y, p["o_norm"])
        return {"y": y @ p["o"].T, "final.cell": last,
                "final.conv": u[-(TAPS - 1):].flip(0).reshape(TAPS - 1, H, D // H).transpose(0, 1)}

    return forward


# ---------------------------------------------------------------------------------- inputs

def draw(name):
    D, H, d, T = SHAPES[name]
    rng = np.random.RandomState(SEEDS[name])
    wide = lambda rows, columns: rng.standard_normal((rows, columns)) / np.sqrt(columns)
    slstm, carried = "slstm" in name, "carried" in name
    p = {"o": wide(D, H * d), "head_norm": 1 + 0.1 * rng.standard_normal(H * d)}
    if slstm:
        p |= {n: wide(H * d, D) for n in GATES} | {f"{n}_bias": rng.standard_normal(H * d) for n in GATES}
        p["f_bias"] = np.tile(5 - 12 * (np.arange(d) / (d - 1)) ** 0.3, H)
        p["r"] = rng.standard_normal((H, 4, d, d)) / np.sqrt(d)
        p["conv"] = rng.uniform(-0.5, 0.5, (D, TAPS))
        if carried:
            p["conv_norm"] = 1 + 0.1 * rng.standard_normal(D)
        shapes = {"cell": (H, 5, d), "conv": (H, TAPS - 1, D // H)}
    else:
        p |= {n: wide(H * d, D) for n in ("q", "k", "v", "og")} | {n: wide(H, D) for n in "if"}
        # head by head: as 7B begins, as usual, into the cap; carried: such that the state before is remembered
        p["i_bias"] = np.array([-10.0, -1.0] if carried else [-10.0, 0.5, 8.0])
        p["f_bias"] = np.linspace(3, 6, H)
        shapes = {"memory": (H, d, d), "normaliser": (H, d), "stabiliser": (H, 1)}
    if carried:
        p["o_norm"] = 1 + 0.1 * rng.standard_normal(H * d)
    t = {"x": rng.standard_normal((T, D)), "dy": rng.standard_normal((T, D))}
    t |= {f"params.{n}": value for n, value in p.items()}
    t |= {f"dstate.{n}": rng.standard_normal(s) for n, s in shapes.items()}
    if carried:
        t |= {f"state.{n}": rng.standard_normal(s) for n, s in shapes.items()}
        if slstm:
            t["state.cell"][:, 2] = 1 + np.abs(t["state.cell"][:, 2])  # a sum of weights, the largest of them 1
    return {n: np.ascontiguousarray(a, dtype=np.float32) for n, a in t.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("."), metavar="DIR")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    options.out.mkdir(parents=True, exist_ok=True)
    versions = (f"transformers {version('transformers')} (Apache-2.0), mlstm_kernels {version('mlstm_kernels')}, "
                f"xlstm {version('xlstm')}, torch {torch.__version__}")
    print("worst rms error / rms")
    for name, shape in SHAPES.items():
        print(name)
        arrays, (D, H, d, T), carried = draw(name), shape, "carried" in name
        if "slstm" in name:
            result = differentiate(slstm_layer(shape, public_slstm, carried), arrays)
            compare("f64 formula written out",
                    differentiate(slstm_layer(shape, own_slstm, carried, public_norm=False), arrays), result)
            source = "xlstm.blocks.slstm.src.vanilla slstm_forward, MultiHeadLayerNorm"
        elif carried:
            result = differentiate(mlstm_layer(shape, public_cell, True), arrays)
            compare("f64 formula written out", differentiate(mlstm_layer(shape, own_cell, True), arrays), result)
            source = "mlstm_kernels mlstm_recurrent_step__native_fw"
        else:
            result = differentiate(transformers_layer(shape), arrays)
            compare("f64 step of mlstm_kernels", differentiate(mlstm_layer(shape, public_cell, False), arrays), result)
            compare("f64 formula written out", differentiate(mlstm_layer(shape, own_cell, False), arrays), result)
            check_forms({n: torch.from_numpy(a).to(F64) for n, a in arrays.items()}, shape)
            source = "transformers xLSTMLayer"
        metadata = {"hidden_size": D, "num_heads": H, "head_dim": d, "rms_norm_eps": EPSILON,
                    "variant": "sLSTM" if "slstm" in name else "mLSTM",
                    "rms_norm_before_every_linear": "true" if carried else "false",
                    "source": f"{source}; {versions}", "tolerance": "rms error / rms of each tensor, f32 arithmetic: 1e-5",
                    "reference": "computed in float64 from these f32 inputs, rounded to f32 once"}
        path = options.out / f"{name}.safetensors"
        write(path, arrays | {n: u.numpy().astype(np.float32) for n, u in result.items()},
              {n: str(v) for n, v in metadata.items()})
        print(f"  {path.name} {path.stat().st_size} bytes, "
              f"sha256 {hashlib.sha256(path.read_bytes()).hexdigest()[:16]}")
    if failures:
        sys.exit("cross-checks failed: " + ", ".join(failures))


if __name__ == "__main__":
    main()
