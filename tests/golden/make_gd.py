#!/usr/bin/env python3
"""Make the golden vectors of the Gated DeltaNet layer (`gd`) from public implementations.

Packages (a CPU build of torch is enough):

    pip install torch==2.13.0 transformers==5.23.0 flash-linear-attention==0.6.0 numpy==2.4.6

Run:

    python make_gd.py --out DIR            the committed files, under 1.5 MB together
    python make_gd.py --out DIR --large    the same files with wider layers (3 MB), for a local run

Every input is drawn from a fixed MT19937 seed and rounded to f32 before anything is computed from
it. The public code is run unmodified in float64 (see `widened`), its results are rounded to f32
once, and one thread is used, so a second run writes the same bytes (another kind of CPU may round a
last bit differently). A table of cross-check errors goes to standard output; the program fails if
one is larger than its bound. Matrices are used as given: nothing is quantised.

    file                             reference
    gd_qwen3next.safetensors         transformers Qwen3NextGatedDeltaNet, the whole layer, 3 heads
    gd_qwen3next_d64.safetensors     the same, 2 heads of 64
    gd_recurrence.safetensors        fla naive_recurrent_gated_delta_rule, S0 != 0, gates at the edges
    gd_recurrence_negeig.safetensors the same with beta in (0, 2)
    gd_full.safetensors              the formula written out below (no public twin has all of it):
                                     states carried, dv = 2 dk, beta in (0, 2), norm before W_o
    gd_efla.safetensors              the same with the exact step: raw keys from 0.07 to 97 long, every
                                     step the matrix exponential (torch.linalg.matrix_exp) of the
                                     differential equation it solves; beta has a bias

Names: inputs `x`, `params.*`, `state.*`, `dy`, `dstate.*`; expected `y`, `final.*`, `dx`, `grad.*`,
`gradstate.*`. A state or final-state gradient that is not in the file is zero. A recurrence file
has `q`, `k`, `v`, `log_alpha`, `beta`, `state.memory`, `do`, `dstate.memory` and expects `o`,
`final.memory`, `dq`, `dk`, `dv`, `dlog_alpha`, `dbeta`, `gradstate.memory`. Shapes, T rows, H heads:

    x, y [T, D]      q, k [H*dk, D]      v, g [H*dv, D]      o [D, H*dv]      a, b [H, D]
    A_log, dt_bias, b_bias [H] (b_bias only in gd_efla)      head_norm [dv]      o_norm [H*dv] (only where that norm is on)
    conv_q, conv_k, conv_v [channels, 4], column j multiplies u_{t-j} (torch's conv1d is reversed)
    memory [H, dk, dv]      state of conv_* [H, 3, dk or dv], index 0 is u_{t-1}, before the SiLU
    recurrence: q, k [T, H, dk], unit rows, unscaled;  v, o [T, H, dv];  log_alpha, beta [T, H]
"""

import argparse
import contextlib
import hashlib
import importlib.util
import inspect
import json
import pathlib
import struct
import sys
from importlib.metadata import version
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
from transformers import DynamicCache
from transformers.models.qwen3_next import modeling_qwen3_next as qwen

F32, F64 = torch.float32, torch.float64
EPSILON = 1e-6  # of the l2 norm and of both RMS norms, always inside the root; also qwen's values
TAPS = 4

# D, H, dk, dv, T
SMALL = {"gd_qwen3next": (12, 3, 16, 16, 150), "gd_qwen3next_d64": (12, 2, 64, 64, 150),
         "gd_recurrence": (None, 2, 64, 64, 200), "gd_recurrence_negeig": (None, 2, 16, 16, 77),
         "gd_full": (64, 2, 16, 32, 70), "gd_efla": (24, 2, 16, 16, 70)}
LARGE = SMALL | {"gd_qwen3next": (96, 3, 32, 32, 150), "gd_qwen3next_d64": (128, 2, 64, 64, 150),
                 "gd_recurrence_negeig": (None, 2, 64, 64, 77)}
# Layers: seeds for which the gradients of A_log and dt_bias, sums over all rows for 2 or 3 heads, do
# not happen to cancel; where they do, any f32 program is off by 1e-4 relative there. Recurrences:
# seeds for which head 0 still remembers its initial state after the last row.
SEEDS = {"gd_qwen3next": 1, "gd_qwen3next_d64": 2, "gd_full": 6, "gd_efla": 9,
         "gd_recurrence": 91, "gd_recurrence_negeig": 7}


# ---------------------------------------------------------------------------------- public code

def load_fla_naive():
    """fla's naive forms, from the file: the package's own __init__ wants Triton."""
    root = importlib.util.find_spec("fla").submodule_search_locations[0]
    path = pathlib.Path(root, "ops", "gated_delta_rule", "naive.py")
    spec = importlib.util.spec_from_file_location("fla_gated_delta_rule_naive", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


naive = load_fla_naive()

# transformers hands these four to a GPU package where one is installed: take the torch forms.
for name in ("torch_recurrent_gated_delta_rule", "torch_chunk_gated_delta_rule",
             "causal_conv1d_fn", "causal_conv1d_update"):
    function = inspect.unwrap(getattr(qwen, name))
    assert inspect.isfunction(function) and function.__module__ == qwen.__name__, name
    setattr(qwen, name, function)


class _WideTorch:
    """The torch module, but float32 is float64."""
    float32 = float = torch.float64

    def __getattr__(self, attribute):
        return getattr(torch, attribute)


@contextlib.contextmanager
def widened(dtype):
    """Both packages cast to float32 by name. For float64 the same code is run with that name, and
    Tensor.float(), meaning float64; nothing else is touched."""
    if dtype == F32:
        yield
        return
    with mock.patch.object(qwen, "torch", _WideTorch()), \
         mock.patch.object(naive, "torch", _WideTorch()), \
         mock.patch.object(torch.Tensor, "float", torch.Tensor.double):
        yield


def qwen_module(D, H, dk, dv):
    config = qwen.Qwen3NextConfig(
        hidden_size=D, linear_num_key_heads=H, linear_num_value_heads=H, linear_key_head_dim=dk,
        linear_value_head_dim=dv, linear_conv_kernel_dim=TAPS, num_hidden_layers=1,
        layer_types=["linear_attention"], rms_norm_eps=EPSILON)
    return qwen.Qwen3NextGatedDeltaNet(config, layer_idx=0), config


def qwen_params(p, H):
    """Our parameters in qwen's layout: in_proj_qkvz is stacked by head (q, k, v, z of head 0, then
    of head 1, ...), in_proj_ba as b, a of head 0, ...; conv1d is q, k, v with the oldest tap first."""
    by_head = lambda *names: torch.cat(
        [p[n].reshape(H, -1, p[n].shape[-1]) for n in names], dim=1).flatten(0, 1)
    conv = torch.cat([p["conv_q"], p["conv_k"], p["conv_v"]])
    return {"in_proj_qkvz.weight": by_head("q", "k", "v", "g"), "in_proj_ba.weight": by_head("b", "a"),
            "conv1d.weight": conv.flip(-1).unsqueeze(1), "A_log": p["A_log"], "dt_bias": p["dt_bias"],
            "norm.weight": p["head_norm"], "out_proj.weight": p["o"]}


def conv_states(columns, H, dk, dv):
    """qwen's conv cache [1, channels, >=3], newest column last -> our three states."""
    lags = columns[0, :, -3:].flip(-1)
    split = lags.split([H * dk, H * dk, H * dv])
    return {f"conv_{n}": s.reshape(H, -1, 3).transpose(1, 2) for n, s in zip("qkv", split)}


class Carry:
    """The cache methods the layer calls, without DynamicCache's in-place copies, so that gradients
    reach the initial state and leave the final one."""

    def __init__(self, columns, memory):
        self.columns, self.memory = columns, memory

    def get_conv_state(self, *_, **__):
        return self.columns

    def get_recurrent_state(self, *_, **__):
        return self.memory

    def is_recording_past(self, *_, **__):
        return False

    def update_conv_state(self, new, *_, **__):
        both = torch.cat([self.columns, new], dim=-1)
        self.columns = both[..., -(TAPS - 1):]
        return both

    def update_recurrent_state(self, memory, *_, **__):
        self.memory = memory


def part(tensors, prefix):
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}


def layer_of_qwen(shape, carry=False):
    D, H, dk, dv, _ = shape
    module, config = qwen_module(D, H, dk, dv)

    def forward(t):
        p, state, x = part(t, "params."), part(t, "state."), t["x"]
        if carry:
            columns = torch.cat([state[f"conv_{n}"].transpose(1, 2).flatten(0, 1) for n in "qkv"])
            cache = Carry(columns.flip(-1).unsqueeze(0), state["memory"].unsqueeze(0))
        else:
            assert not state
            cache = DynamicCache(config=config)
        with widened(x.dtype):
            y = torch.func.functional_call(module, qwen_params(p, H), (x.unsqueeze(0),),
                                           {"cache_params": cache})
        if carry:
            columns, memory = cache.columns, cache.memory
        else:
            columns, memory = cache.layers[0].conv_states[0], cache.layers[0].recurrent_states[0]
        final = {"memory": memory[0], **conv_states(columns, H, dk, dv)}
        return {"y": y[0], **{f"final.{n}": s for n, s in final.items()}}

    return forward


def qwen_in_pieces(shape, t, pieces):
    """The layer called once a piece with DynamicCache; a piece of one row takes its decode path."""
    D, H, dk, dv, _ = shape
    module, config = qwen_module(D, H, dk, dv)
    cache, rows = DynamicCache(config=config), []
    with torch.no_grad(), widened(F64):
        for x in t["x"].split(pieces):
            rows.append(torch.func.functional_call(
                module, qwen_params(part(t, "params."), H), (x.unsqueeze(0),),
                {"cache_params": cache})[0])
    layer = cache.layers[0]
    final = {"memory": layer.recurrent_states[0][0], **conv_states(layer.conv_states[0], H, dk, dv)}
    return {"y": torch.cat(rows), **{f"final.{n}": s for n, s in final.items()}}


def recurrence_of(function):
    """All four public forms take [B, T, H, *], log decay `g`, and scale q by dk^-1/2 themselves."""
    def forward(t):
        q, k, v, g, beta = (t[n].unsqueeze(0) for n in ("q", "k", "v", "log_alpha", "beta"))
        with widened(q.dtype):
            o, memory = function(q, k, v, g=g, beta=beta, output_final_state=True,
                                 initial_state=t["state.memory"].unsqueeze(0))
        return {"o": o[0], "final.memory": memory[0]}

    return forward


# ---------------------------------------------------------------------------------- the formula

def own_recurrence(t):
    S, scale, rows = t["state.memory"], t["q"].shape[-1] ** -0.5, []
    for q, k, v, log_alpha, beta in zip(t["q"], t["k"], t["v"], t["log_alpha"], t["beta"]):
        S = log_alpha.exp()[:, None, None] * S
        u = beta[:, None] * (v - torch.einsum("hk,hkv->hv", k, S))
        S = S + torch.einsum("hk,hv->hkv", k, u)
        rows.append(scale * torch.einsum("hk,hkv->hv", q, S))
    return {"o": torch.stack(rows), "final.memory": S}


def exact_recurrence(t):
    """dS/dtau = k^T (v - k S), for a time beta after the decay: the exponential of its generator."""
    S, scale, rows, dk = t["state.memory"], t["q"].shape[-1] ** -0.5, [], t["q"].shape[-1]
    below = torch.zeros(S.shape[0], S.shape[2], dk + S.shape[2], dtype=S.dtype)
    for q, k, v, log_alpha, beta in zip(t["q"], t["k"], t["v"], t["log_alpha"], t["beta"]):
        right = torch.cat([-torch.einsum("hi,hj->hij", k, k), torch.einsum("hi,hj->hij", k, v)], dim=-1)
        flow = torch.linalg.matrix_exp(beta[:, None, None] * torch.cat([right, below], dim=-2))[:, :dk]
        S = flow[..., :dk] @ (log_alpha.exp()[:, None, None] * S) + flow[..., dk:]
        rows.append(scale * torch.einsum("hk,hkv->hv", q, S))
    return {"o": torch.stack(rows), "final.memory": S}


def own_layer(shape, neg_eigval=False, o_norm=False, recurrence=own_recurrence):
    D, H, dk, dv, T = shape
    silu = lambda u: u * torch.sigmoid(u)
    l2 = lambda u: u * torch.rsqrt((u * u).sum(-1, keepdim=True) + EPSILON)
    rms_norm = lambda u: u * torch.rsqrt((u * u).mean(-1, keepdim=True) + EPSILON)

    def forward(t):
        p, x, final = part(t, "params."), t["x"], {}

        def conv(n):
            u = (x @ p[n].T).reshape(T, H, -1)
            before = t.get(f"state.conv_{n}", torch.zeros(H, TAPS - 1, u.shape[-1], dtype=x.dtype))
            u = torch.cat([before.transpose(0, 1).flip(0), u])
            final[f"final.conv_{n}"] = u[-(TAPS - 1):].flip(0).transpose(0, 1)
            w = p[f"conv_{n}"].reshape(H, -1, TAPS)
            return silu(sum(w[..., j] * u[TAPS - 1 - j:TAPS - 1 - j + T] for j in range(TAPS)))

        exact = "b_bias" in p
        q, k, v = l2(conv("q")), conv("k") if exact else l2(conv("k")), conv("v")
        log_alpha = -torch.exp(p["A_log"]) * F.softplus(x @ p["a"].T + p["dt_bias"])
        beta = torch.sigmoid(x @ p["b"].T + (p["b_bias"] if exact else 0)) * (2 if neg_eigval else 1)
        memory = t.get("state.memory", torch.zeros(H, dk, dv, dtype=x.dtype))
        out = recurrence({"q": q, "k": k, "v": v, "log_alpha": log_alpha, "beta": beta,
                              "state.memory": memory})
        gate = silu(x @ p["g"].T).reshape(T, H, dv)
        mixed = (rms_norm(out["o"]) * p["head_norm"] * gate).reshape(T, H * dv)
        if o_norm:
            mixed = rms_norm(mixed) * p["o_norm"]
        return {"y": mixed @ p["o"].T, "final.memory": out["final.memory"], **final}

    return forward


# ------------------------------------------------------------------------------ inputs, results

def init_gates(rng, H):
    """As the layer is initialised: A ~ U(0, 16), dt log-uniform in [1e-3, 0.1]."""
    A = np.maximum(rng.uniform(0, 16, H), 1e-3)
    dt = np.exp(rng.uniform(np.log(1e-3), np.log(0.1), H))
    return A, dt + np.log(-np.expm1(-dt))


def draw_layer(seed, shape, state=False, o_norm=False):
    D, H, dk, dv, T = shape
    rng = np.random.RandomState(seed)
    wide = lambda rows, columns: rng.standard_normal((rows, columns)) / np.sqrt(columns)
    A, dt_bias = init_gates(rng, H)
    p = {"q": wide(H * dk, D), "k": wide(H * dk, D), "v": wide(H * dv, D), "g": wide(H * dv, D),
         "o": wide(D, H * dv), "a": wide(H, D), "b": wide(H, D), "A_log": np.log(A), "dt_bias": dt_bias}
    p |= {f"conv_{n}": rng.uniform(-0.5, 0.5, (p[n].shape[0], TAPS)) for n in "qkv"}
    p["head_norm"] = 1 + 0.1 * rng.standard_normal(dv)
    if o_norm:
        p["o_norm"] = 1 + 0.1 * rng.standard_normal(H * dv)
    t = {"x": rng.standard_normal((T, D)), "dy": rng.standard_normal((T, D))}
    t |= {f"params.{n}": value for n, value in p.items()}
    if state:
        shapes = {"memory": (H, dk, dv), "conv_q": (H, 3, dk), "conv_k": (H, 3, dk), "conv_v": (H, 3, dv)}
        for kind in ("state", "dstate"):
            t |= {f"{kind}.{n}": rng.standard_normal(s) for n, s in shapes.items()}
    return as_f32(t)


def draw_recurrence(seed, shape, neg_eigval):
    _, H, dk, dv, T = shape
    rng = np.random.RandomState(seed)
    unit = lambda u: u / np.sqrt((u * u).sum(-1, keepdims=True))
    sigmoid = lambda u: 1 / (1 + np.exp(-u))
    A, dt_bias = init_gates(rng, H)
    log_alpha = -A * np.logaddexp(0, 0.3 * rng.standard_normal((T, H)) + dt_bias)
    beta = (2 if neg_eigval else 1) * sigmoid(1.5 * rng.standard_normal((T, H)))
    t = {"q": unit(rng.standard_normal((T, H, dk))), "k": unit(rng.standard_normal((T, H, dk))),
         "v": rng.standard_normal((T, H, dv)), "log_alpha": log_alpha, "beta": beta,
         "state.memory": rng.standard_normal((H, dk, dv)),
         "do": rng.standard_normal((T, H, dv)), "dstate.memory": rng.standard_normal((H, dk, dv))}
    if not neg_eigval:  # rows that forget all (head 1), forget nothing, write nothing, overwrite
        log_alpha[[40, 63, 64, 128, 129, 150], 1] = -30
        log_alpha[[10, 100]] = 0
        beta[[7, 65, 100, 127, 129]] = 0
        beta[[8, 64, 101, 130, 199]] = 1
    return as_f32(t)


def as_f32(arrays):
    return {n: np.ascontiguousarray(a, dtype=np.float32) for n, a in arrays.items()}


INPUTS = {"x", "q", "k", "v", "log_alpha", "beta"}


def gradient_name(name):
    if name in INPUTS:
        return "d" + name
    return name.replace("params.", "grad.").replace("state.", "gradstate.")


def differentiate(forward, arrays, dtype=F64):
    """Outputs of `forward` and the gradients of sum(output * its given gradient)."""
    t = {n: torch.from_numpy(a).to(dtype) for n, a in arrays.items()}
    leaves = {n: u.requires_grad_() for n, u in t.items()
              if n in INPUTS or n.startswith(("params.", "state."))}
    out = forward(leaves)
    loss = sum((out[n] * t[d]).sum() for n in out
               if (d := "d" + n.replace("final.", "state.")) in t)
    grads = torch.autograd.grad(loss, list(leaves.values()))
    out |= {gradient_name(n): g for n, g in zip(leaves, grads)}
    return {n: u.detach().to(dtype).contiguous() for n, u in out.items()}


def write(path, arrays, metadata):
    """A safetensors file with header and data in sorted order: the library's own writer shuffles
    the metadata, so its bytes differ from run to run."""
    header, data = {"__metadata__": dict(sorted(metadata.items()))}, b""
    for n in sorted(arrays):
        raw = arrays[n].astype("<f4").tobytes()
        header[n] = {"dtype": "F32", "shape": list(arrays[n].shape),
                     "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


# --------------------------------------------------------------------------------- cross-checks

failures = []


def rms_error(got, want):
    error = (got.to(F64) - want.to(F64)).square().mean().sqrt().item()
    size = want.to(F64).square().mean().sqrt().item()
    return error / size if size else error


def is_gradient(name):
    return name.startswith("grad") or name in {"d" + n for n in INPUTS}


def compare(what, got, want, bound, detail=False):
    """One line: rms error / rms of the output, and of the worst final state and worst gradient."""
    error = {n: rms_error(got[n], want[n]) for n in want if n in got}
    groups = ([n for n in error if n in "yo"], [n for n in error if n.startswith("final.")],
              [n for n in error if is_gradient(n)])
    cells = []
    for group in groups:
        worst = max(group, key=error.get, default=None)
        cells.append(f"{error[worst]:8.1e} {worst:<17}" if worst else " " * 26)
    bad = max(error.values()) > bound
    failures.extend([what] if bad else [])
    print(f"  {what:<50}{cells[0]}{cells[1]}{cells[2]}{'  TOO LARGE' if bad else ''}")
    if detail:
        print("    " + "  ".join(f"{n} {e:.1e}" for n, e in error.items()))


def directional(forward, arrays, result, seed=1, step=1e-5):
    """Central difference of the loss along one random direction against the gradients."""
    rng = np.random.RandomState(seed)
    moved = {n for n in arrays if n in INPUTS or n.startswith(("params.", "state."))}
    along = {n: rng.standard_normal(arrays[n].shape) for n in sorted(moved)}

    def loss(sign):
        t = {n: torch.from_numpy(a.astype(np.float64) + (sign * step * along[n] if n in moved else 0))
             for n, a in arrays.items()}
        with torch.no_grad():
            out = forward(t)
        return sum((out[n] * t[d]).sum() for n in out
                   if (d := "d" + n.replace("final.", "state.")) in t).item()

    slope = sum((result[gradient_name(n)].numpy() * along[n]).sum() for n in along)
    error = abs((loss(1) - loss(-1)) / (2 * step) - slope) / abs(slope)
    failures.extend(["directional difference"] if error > 1e-6 else [])
    print(f"  {'directional difference, all inputs at once':<50}{error:8.1e}")


# -------------------------------------------------------------------------------------- the files

def metadata(shape, neg_eigval, source, tolerance, **more):
    D, H, dk, dv, _ = shape
    flag = lambda b: "true" if b else "false"
    out = {"num_heads": H, "head_dim": dk, "value_expand": dv // dk, "allow_neg_eigval": flag(neg_eigval),
           "source": source, "tolerance": tolerance,
           "reference": "computed in float64 from these f32 inputs, rounded to f32 once"}
    if D is not None:
        out |= {"hidden_size": D, "output_gate": "true", "short_conv": TAPS, "rms_norm_eps": EPSILON,
                "l2_norm_eps": EPSILON}
    return {n: str(value) for n, value in (out | more).items()}


TOLERANCE = "rms error / rms of each tensor, f32 arithmetic: "
TRANSFORMERS = f"transformers {version('transformers')} (Apache-2.0), torch {torch.__version__}"
FLA = f"flash-linear-attention {version('flash-linear-attention')} (MIT), torch {torch.__version__}"


def make_qwen(name, shape):
    arrays = draw_layer(SEEDS[name], shape)
    public = layer_of_qwen(shape)
    result = differentiate(public, arrays)
    compare("f32 Qwen3NextGatedDeltaNet", differentiate(public, arrays, F32), result, 5e-6, detail=True)
    compare("f64 formula written out", differentiate(own_layer(shape), arrays), result, 1e-12)
    wide = {n: torch.from_numpy(a).to(F64) for n, a in arrays.items()}
    compare("f64 module in 64 + 81 rows, 5 single rows",
            qwen_in_pieces(shape, wide, [64, 81, 1, 1, 1, 1, 1]), result, 1e-12)
    return arrays, result, metadata(
        shape, False,
        f"{TRANSFORMERS}, models.qwen3_next.modeling_qwen3_next.Qwen3NextGatedDeltaNet, torch path",
        TOLERANCE + "1e-5",
        rms_norm_before_every_linear="false")


def make_recurrence(name, shape):
    neg_eigval = name.endswith("negeig")
    arrays = draw_recurrence(SEEDS[name], shape, neg_eigval)
    forms = {"fla naive_recurrent": recurrence_of(naive.naive_recurrent_gated_delta_rule),
             "fla naive_chunk (64)": recurrence_of(naive.naive_chunk_gated_delta_rule),
             "transformers torch_recurrent": recurrence_of(qwen.torch_recurrent_gated_delta_rule),
             "transformers torch_chunk (64)": recurrence_of(qwen.torch_chunk_gated_delta_rule),
             "formula written out": own_recurrence}
    result = differentiate(forms["fla naive_recurrent"], arrays)
    for what, form in list(forms.items())[1:]:
        compare("f64 " + what, differentiate(form, arrays), result, 1e-12)
    for what, form in forms.items():
        compare("f32 " + what, differentiate(form, arrays, F32), result, 1e-5, detail=True)
    return arrays, result, metadata(
        shape, neg_eigval, f"{FLA}, fla.ops.gated_delta_rule.naive.naive_recurrent_gated_delta_rule",
        TOLERANCE + "2e-6 (chunk forms that sum log_alpha in f32 miss it after rows of -30)", scale="head_dim^-0.5, on q")


def make_full(name, shape):
    arrays = draw_layer(SEEDS[name], shape, state=True, o_norm=True)
    formula = own_layer(shape, neg_eigval=True, o_norm=True)
    result = differentiate(formula, arrays)
    compare("f32 formula written out", differentiate(formula, arrays, F32), result, 5e-6, detail=True)
    directional(formula, arrays, result)
    plain = {n: a for n, a in arrays.items() if n != "params.o_norm"}
    compare("f64 formula vs Qwen3Next, beta < 1, no o_norm",
            differentiate(own_layer(shape), plain),
            differentiate(layer_of_qwen(shape, carry=True), plain), 1e-12)
    return arrays, result, metadata(
        shape, True, f"own f64: the formula written out in make_gd.py, torch {torch.__version__} autograd",
        TOLERANCE + "1e-5",
        rms_norm_before_every_linear="true")


def closed_form(t):
    """The same steps by the formula: S + c k^T (v - k S), c = (1 - e^(-beta |k|^2)) / |k|^2."""
    square = (t["k"] * t["k"]).sum(-1)
    return own_recurrence(t | {"beta": -torch.expm1(-t["beta"] * square) / square})


def make_efla(name, shape):
    arrays = draw_layer(SEEDS[name], shape, state=True, o_norm=True)
    H = shape[1]
    arrays["params.b_bias"] = as_f32({"": -2 + 0.3 * np.random.RandomState(3).standard_normal(H)})[""]
    arrays["params.conv_k"].reshape(H, -1)[:] *= np.array([[0.1], [25]], dtype=np.float32)  # a head each
    exact = own_layer(shape, o_norm=True, recurrence=exact_recurrence)
    formula = own_layer(shape, o_norm=True, recurrence=closed_form)
    result = differentiate(exact, arrays)
    compare("f64 closed form", differentiate(formula, arrays), result, 1e-10, detail=True)
    compare("f32 closed form", differentiate(formula, arrays, F32), result, 5e-5, detail=True)
    directional(exact, arrays, result)
    return arrays, result, metadata(
        shape, False, f"own f64: make_gd.py with torch {torch.__version__} linalg.matrix_exp and autograd",
        TOLERANCE + "1e-5", rms_norm_before_every_linear="true", efla="true")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("."), metavar="DIR")
    parser.add_argument("--large", action="store_true", help="wider layers, about 3 MB")
    options = parser.parse_args()

    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    options.out.mkdir(parents=True, exist_ok=True)
    makers = {"gd_qwen3next": make_qwen, "gd_qwen3next_d64": make_qwen, "gd_full": make_full, "gd_efla": make_efla,
              "gd_recurrence": make_recurrence, "gd_recurrence_negeig": make_recurrence}
    total = 0
    print("rms error / rms: output, worst final state, worst gradient")
    for name, shape in (LARGE if options.large else SMALL).items():
        print(f"{name}: " + ", ".join(f"{n} {v}" for n, v in zip(("D", "H", "dk", "dv", "T"), shape) if v))
        arrays, result, meta = makers[name](name, shape)
        path = options.out / f"{name}.safetensors"
        write(path, arrays | {n: u.numpy().astype(np.float32) for n, u in result.items()}, meta)
        total += path.stat().st_size
        print(f"  {path.name} {path.stat().st_size} bytes, "
              f"sha256 {hashlib.sha256(path.read_bytes()).hexdigest()[:16]}")
    print(f"{total} bytes in all")
    if failures:
        sys.exit("cross-checks failed: " + ", ".join(failures))


if __name__ == "__main__":
    main()
