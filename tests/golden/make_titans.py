#!/usr/bin/env python3
"""Make the golden vectors of the Titans layer (`titans`, memory as context).

Packages and use as make_gd.py, whose file format this shares; besides those titans-pytorch and what it imports:

    pip install torch==2.13.0 numpy==2.4.6 titans-pytorch==0.5.5
    python make_titans.py --out DIR

There is no public implementation of the layer. What is written down here is its definition, one token after the other,
in float64 on inputs rounded to f32 first; gradients are autograd's, results are rounded to f32 once. Two things are
held against others before a file is written: the gradient and one update of the memory against NeuralMemory of
titans-pytorch (chunk 1, without its norm and residual, our memory and loss handed in), and the definition against its
chunk form, written out a second time.

    file                            what
    titans_after.safetensors        the card's layer, states carried in the middle of a chunk and over a segment's edge
    titans_before.safetensors       update before, retrieve current, chunks of 5, a segment whose core is half carried
    titans_window.safetensors       softmax over a window of 16 tokens, chunks of 8
    titans_update.safetensors       titans-pytorch's NeuralMemory: one token into a memory with momentum

Names: inputs `x`, `params.*`, `state.*`, `dy`, `dstate.*`; expected `y`, `final.*`, `dx`, `grad.*`, `gradstate.*`. A
state that is not in the file is zero, and so is a final-state gradient. T rows, H heads of d, chunks of C, N slots:

    q, k, v [H*d, D]   o [D, H*d]   conv_* [H*d, 4]   gamma, eta, alpha, theta [H, D]   A_log, dt_bias, *_bias, tau [H]
    maps [H, 5, d, d]: identity plus these for keys and values of the context, keys, values and questions of the memory
    w1, w2 [H, d, d]   p_k, p_v [H, N, d]   y_norm, w_m, b_m [d]   o_norm [H*d]
    fast [H, 4, d, d]: the deviations of both matrices, then their momenta, at the chunk's beginning
    core [H, d, d]   log [H, 4, C, d]: key, gradient at the hidden layer, hidden layer, error of the chunk's rows so far
    gates [H, 3, C]: momentum, step size, forgetting of those rows   keys, values [H, window, d]
"""

import argparse
import hashlib
import importlib.util
import json
import pathlib
import struct
import sys
import types

import numpy as np
import torch
import torch.nn.functional as F

F32, F64 = torch.float32, torch.float64
EPSILON = 1e-6
TAPS = 4
failures = []

# D, H, d, T, slots; position of the first row
CASES = {
    "titans_after": dict(shape=(20, 2, 8, 61, 6), position=21, chunk=16, segment=32, seed=11,
                         core="decay", update="after", retrieve="anchor", carry=0.0),
    "titans_before": dict(shape=(12, 3, 6, 43, 3), position=0, chunk=5, segment=20, seed=12,
                          core="decay", update="before", retrieve="current", carry=0.5),
    "titans_window": dict(shape=(16, 2, 7, 44, 5), position=30, chunk=8, segment=16, seed=13,
                          core="window_softmax", update="after", retrieve="anchor", carry=0.0),
}
MAP_KEY, MAP_VALUE, MAP_KAPPA, MAP_NU, MAP_RHO = range(5)


def l2(u):
    return u / torch.sqrt((u * u).sum(-1, keepdim=True) + 1e-6)


def rms(u):
    return u / torch.sqrt((u * u).mean(-1, keepdim=True) + EPSILON)


def mv(u, w):
    """u [H, d] through w [H, d, e]"""
    return torch.einsum("hi,hij->hj", u, w)


def silu_slope(z):
    s = torch.sigmoid(z)
    return s * (1 + z * (1 - s))


def through(maps, which, u):
    return u + mv(u, maps[:, which])


# ------------------------------------------------------------------------------- the definition, token by token


def inner_gradient(kappa, nu, a1, a2):
    """delta, p, e of |M(kappa) - nu|^2 / 2 with M(u) = u + silu(u A1) A2: the gradients are kappa^T delta, p^T e."""
    z = mv(kappa, a1)
    p = F.silu(z)
    e = kappa + mv(p, a2) - nu
    delta = torch.einsum("hc,hjc->hj", e, a2) * silu_slope(z)
    return delta, p, e


def memory(u, a1, a2):
    return u + mv(F.silu(mv(u, a1)), a2)


def outer(a, b):
    return torch.einsum("hi,hj->hij", a, b)


def sequential(case, q, k, v, log_gamma, eta, alpha, theta, context, par, fast, core, log, gates):
    """y before its weight and m of every row, and the states after them. q.. [T, H, d], gates [T, H]."""
    C, first = case["chunk"], case["position"]
    maps, w1, w2 = par["maps"], par["w1"], par["w2"]
    edge = [fast[:, i] for i in range(4)]
    D1, D2, S1, S2 = edge
    rows = []  # of the chunk so far: (key, delta, p, e, eta, theta, alpha)
    for i in range(0 if first == 0 else (first - 1) % C + 1):
        rows.append(tuple(log[:, n, i] for n in range(4)) + tuple(gates[:, n, i] for n in range(3)))

    def advance(row):
        nonlocal D1, D2, S1, S2
        kappa, delta, p, e, et, th, al = row
        col = lambda g: g[:, None, None]
        S1 = col(et) * S1 - col(th) * outer(kappa, delta)
        S2 = col(et) * S2 - col(th) * outer(p, e)
        D1 = (1 - col(al)) * D1 + S1
        D2 = (1 - col(al)) * D2 + S2

    for row in rows:
        advance(row)
    scale = q.shape[-1] ** -0.5
    ys, ms = [], []
    for t in range(q.shape[0]):
        at = first + t
        if at > 0 and at % C == 0:
            edge = [D1, D2, S1, S2]
            rows = []
        a1, a2 = w1 + edge[0], w2 + edge[1]

        def learn(kappa, nu):
            delta, p, e = inner_gradient(kappa, nu, a1, a2)
            step = theta[t] * (1 - eta[t]) / (C * (1 + (p * p).sum(-1)))
            rows.append((kappa, delta, p, e, eta[t], step, alpha[t]))
            advance(rows[-1])

        m = None
        if case["update"] == "before":
            learn(l2(through(maps, MAP_KAPPA, k[t])), through(maps, MAP_NU, v[t]))
            m = memory(l2(through(maps, MAP_RHO, q[t])), w1 + D1, w2 + D2)
        h = {"anchor": lambda: memory(q[t], a1, a2), "current": lambda: m, "none": lambda: None}[case["retrieve"]]()
        decay = torch.exp(log_gamma[t])
        if at % case["segment"] == 0:
            decay = decay * case["carry"]
        core = decay[:, None, None] * core
        if case["core"] == "decay":
            core = core + outer(k[t], v[t])
        if h is not None:
            core = core + outer(l2(through(maps, MAP_KEY, h)), through(maps, MAP_VALUE, h))
        y = rms(scale * mv(q[t], core) + context[t])
        if case["update"] == "after":
            learn(l2(through(maps, MAP_KAPPA, y)), through(maps, MAP_NU, y))
            m = memory(l2(through(maps, MAP_RHO, y)), w1 + D1, w2 + D2)
        ys.append(y)
        ms.append(m)
    H, d = q.shape[1:]
    pad = lambda n, shape: torch.stack([r[n] for r in rows] + [q.new_zeros(shape)] * (C - len(rows)), 1)
    final = {"fast": torch.stack(edge, 1), "core": core,
             "log": torch.stack([pad(n, (H, d)) for n in range(4)], 1),
             "gates": torch.stack([pad(n, (H,)) for n in range(4, 7)], 1)}
    return torch.stack(ys), torch.stack(ms), final


# ----------------------------------------------------------------------------- the chunk form, update after, anchor


def chunked(case, q, k, v, log_gamma, eta, alpha, theta, context, par, fast, core):
    """The same for update after, retrieve anchor, core decay, from the start of a chunk."""
    C, first = case["chunk"], case["position"]
    assert first % C == 0 and case["segment"] % C == 0
    maps, w1, w2 = par["maps"], par["w1"], par["w2"]
    D1, D2, S1, S2 = (fast[:, i] for i in range(4))
    many = lambda u, w: torch.einsum("thi,hij->thj", u, w)
    mapped = lambda n, u: u + many(u, maps[:, n])
    scale = q.shape[-1] ** -0.5
    ys, ms = [], []
    for begin in range(0, q.shape[0], C):
        s = slice(begin, min(begin + C, q.shape[0]))
        Q, b = q[s], q[s].shape[0]
        a1, a2 = w1 + D1, w2 + D2
        h = Q + many(F.silu(many(Q, a1)), a2)
        X, V = torch.cat([k[s], l2(mapped(MAP_KEY, h))]), torch.cat([v[s], mapped(MAP_VALUE, h)])
        g = torch.cumsum(log_gamma[s], 0)
        if (first + begin) % case["segment"] == 0:
            core = core * case["carry"]
        lower = torch.tril(torch.ones(b, b, dtype=q.dtype))
        decay = torch.exp((g[:, None] - g[None]).masked_fill(lower[..., None] == 0, -torch.inf))
        P = torch.einsum("ihc,jhc->ijh", Q, X) * torch.cat([decay, decay], 1)
        o = torch.einsum("ijh,jhc->ihc", P, V) + torch.exp(g)[..., None] * many(Q, core)
        y = rms(scale * o + context[s])
        last = torch.exp(g[-1] - g)
        core = torch.exp(g[-1])[:, None, None] * core + torch.einsum("th,thi,thj->hij", torch.cat([last, last]), X, V)
        kappa, nu, rho = l2(mapped(MAP_KAPPA, y)), mapped(MAP_NU, y), l2(mapped(MAP_RHO, y))
        z = many(kappa, a1)
        p = F.silu(z)
        e = kappa + many(p, a2) - nu
        delta = torch.einsum("thc,hjc->thj", e, a2) * silu_slope(z)
        step = theta[s] * (1 - eta[s]) / (C * (1 + (p * p).sum(-1)))
        H = q.shape[1]
        J = [torch.cat([q.new_ones(1, H), q.new_zeros(b, H)])]
        K = [q.new_zeros(b + 1, H)]
        D = [q.new_ones(H)]
        for t in range(b):
            one = q.new_zeros(b + 1, H)
            one[t + 1] = 1
            J.append(eta[s][t] * J[-1] + one)
            K.append((1 - alpha[s][t]) * K[-1] + J[-1])
            D.append((1 - alpha[s][t]) * D[-1])
        K, J, D = torch.stack(K[1:]), torch.stack(J[1:]), torch.stack(D[1:])
        c, j, Kt, Jt = K[:, 0], J[:, 0], K[:, 1:] * step, J[:, 1:] * step
        mix = lambda u, w, d, m: (many(u, w) + D[..., None] * many(u, d) + c[..., None] * many(u, m))
        zr = mix(rho, w1, D1, S1) - torch.einsum("tih,ihc->thc", torch.einsum("thc,ihc->tih", rho, kappa) * Kt, delta)
        a = F.silu(zr)
        m = rho + mix(a, w2, D2, S2) - torch.einsum("tih,ihc->thc", torch.einsum("thc,ihc->tih", a, p) * Kt, e)
        fold = lambda wgt, u, w: torch.einsum("ih,ihc,ihe->hce", wgt, u, w)
        col = lambda g: g[:, None, None]
        D1, S1 = (col(D[-1]) * D1 + col(c[-1]) * S1 - fold(Kt[-1], kappa, delta),
                  col(j[-1]) * S1 - fold(Jt[-1], kappa, delta))
        D2, S2 = (col(D[-1]) * D2 + col(c[-1]) * S2 - fold(Kt[-1], p, e), col(j[-1]) * S2 - fold(Jt[-1], p, e))
        ys.append(y)
        ms.append(m)
    return torch.cat(ys), torch.cat(ms)


# -------------------------------------------------------------------------------------------------- the layer


def layer(case):
    D, H, d, T, N = case["shape"]

    def forward(t):
        t = with_states(t)
        p = {n[7:]: u for n, u in t.items() if n.startswith("params.")}
        final = {}

        def mixed(name):
            u = t["x"] @ p[name].T
            before = t["state.conv_" + name].permute(1, 0, 2).reshape(TAPS - 1, H * d).flip(0)
            padded = torch.cat([before, u])
            final["final.conv_" + name] = padded[-(TAPS - 1):].flip(0).reshape(TAPS - 1, H, d).permute(1, 0, 2)
            u = sum(p["conv_" + name][:, j] * padded[TAPS - 1 - j:TAPS - 1 - j + T] for j in range(TAPS))
            return F.silu(u).reshape(T, H, d)

        q, k, v = l2(mixed("q")), l2(mixed("k")), mixed("v")
        log_gamma = -torch.exp(p["A_log"]) * F.softplus(t["x"] @ p["gamma"].T + p["dt_bias"])
        gate = lambda n: torch.sigmoid(t["x"] @ p[n].T + p[n + "_bias"])
        sharp = p["tau"][:, None] * q
        context = torch.softmax(torch.einsum("thc,hnc->thn", sharp, p["p_k"]), -1)
        context = torch.einsum("thn,hnc->thc", context, p["p_v"])
        if case["core"] == "window_softmax":
            W, first = case["segment"], case["position"]
            order = [at % W for at in range(max(first - W + 1, 0), first)]
            all_k = torch.cat([t["state.keys"].permute(1, 0, 2)[order], k])
            all_v = torch.cat([t["state.values"].permute(1, 0, 2)[order], v])
            seen = len(order)
            i, j = torch.arange(T)[:, None] + seen, torch.arange(T + seen)[None]
            score = torch.einsum("thc,jhc->thj", sharp, all_k)
            score = score.masked_fill(((j > i) | (j <= i - W))[:, None], -torch.inf)
            context = context + torch.einsum("thj,jhc->thc", torch.softmax(score, -1), all_v)
            last = range(first + T - W, first + T)
            place = torch.tensor(np.argsort([at % W for at in last]))
            final["final.keys"] = all_k[-W:][place].permute(1, 0, 2)
            final["final.values"] = all_v[-W:][place].permute(1, 0, 2)
        y, m, states = sequential(case, q, k, v, log_gamma, gate("eta"), gate("alpha"), gate("theta"), context, p,
                                  t["state.fast"], t["state.core"], t["state.log"], t["state.gates"])
        final |= {"final." + n: u for n, u in states.items()}
        o = y * p["y_norm"] * torch.sigmoid(p["w_m"] * rms(m) + p["b_m"])
        o = rms(o.reshape(T, H * d)) * p["o_norm"]
        return {"y": o @ p["o"].T, **final}

    return forward


def as_f32(arrays):
    return {n: np.ascontiguousarray(a, dtype=np.float32) for n, a in arrays.items()}


def draw(case):
    D, H, d, T, N = case["shape"]
    C = case["chunk"]
    rng = np.random.RandomState(case["seed"])
    normal = rng.standard_normal
    wide = lambda rows, columns: normal((rows, columns)) / np.sqrt(columns)
    p = {n: wide(H * d, D) for n in "qkv"} | {"o": wide(D, H * d)}
    p |= {n: wide(H, D) for n in ("gamma", "eta", "alpha", "theta")}
    A, dt = np.maximum(rng.uniform(0, 16, H), 1e-3), np.exp(rng.uniform(np.log(1e-3), np.log(0.1), H))
    p |= {"A_log": np.log(A), "dt_bias": dt + np.log(-np.expm1(-dt)), "eta_bias": 2.2 + 0.1 * normal(H),
          "alpha_bias": -3 + 0.1 * normal(H), "theta_bias": 2 + 0.1 * normal(H), "tau": 8 + normal(H)}
    p |= {f"conv_{n}": rng.uniform(-0.5, 0.5, (H * d, TAPS)) for n in "qkv"}
    p |= {"maps": 0.2 * normal((H, 5, d, d)), "w1": 2 / np.sqrt(d) * normal((H, d, d)),
          "w2": 0.2 * normal((H, d, d)), "p_k": 0.3 * normal((H, N, d)), "p_v": 0.3 * normal((H, N, d))}
    p |= {"y_norm": 1 + 0.1 * normal(d), "w_m": 1 + 0.1 * normal(d), "b_m": 0.1 * normal(d),
          "o_norm": 1 + 0.1 * normal(H * d)}
    t = {"x": normal((T, D)), "dy": normal((T, D))} | {f"params.{n}": a for n, a in p.items()}
    shapes = {"fast": (H, 4, d, d), "core": (H, d, d), "log": (H, 4, C, d), "gates": (H, 3, C)}
    shapes |= {f"conv_{n}": (H, TAPS - 1, d) for n in "qkv"}
    if case["core"] == "window_softmax":
        shapes |= {n: (H, case["segment"], d) for n in ("keys", "values")}
    for n, s in shapes.items():
        t["dstate." + n] = normal(s)
        if not case["position"]:
            continue
        t["state." + n] = 0.4 * normal(s)
        rows = (case["position"] - 1) % C + 1
        if n == "log":
            t["state.log"][:, :, rows:] = 0
        if n == "gates":
            t["state.gates"] = rng.uniform(0, 1, s) * np.array([1, 0.1, 0.1])[:, None]
            t["state.gates"][:, :, rows:] = 0
    return as_f32(t)


def with_states(t):
    """A document's start has states of zeros, which are no part of the file."""
    zeros = {n.replace("dstate.", "state."): torch.zeros_like(u) for n, u in t.items() if n.startswith("dstate.")}
    return zeros | t


def gradient_name(name):
    return "dx" if name == "x" else name.replace("params.", "grad.").replace("state.", "gradstate.")


def differentiate(forward, arrays, dtype=F64):
    t = {n: torch.from_numpy(a).to(dtype) for n, a in arrays.items()}
    leaves = {n: u.requires_grad_() for n, u in t.items() if n == "x" or n.startswith(("params.", "state."))}
    out = forward(t)
    loss = (out["y"] * t["dy"]).sum() + sum((u * t[n.replace("final.", "dstate.")]).sum()
                                            for n, u in out.items() if n != "y")
    grads = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
    out |= {gradient_name(n): torch.zeros_like(t[n]) if g is None else g for n, g in zip(leaves, grads)}
    return {n: u.detach() for n, u in out.items()}


# --------------------------------------------------------------------------------------------- cross-checks


def error(got, want):
    return ((got - want).square().mean().sqrt() / want.square().mean().sqrt()).item()


def expect(what, got, want, bound):
    e = max(error(a, b) for a, b in zip(got, want))
    print(f"  {what:<60}{e:9.1e}{'  TOO LARGE' if e > bound else ''}")
    failures.extend([what] if e > bound else [])


def check_chunk_form():
    """The definition against its chunk form, outputs and gradients, over several chunks and segments."""
    H, d, T = 2, 16, 70
    for C in (16, 1, 10):
        case = dict(chunk=C, position=0, segment=20 if C == 10 else 32, core="decay", update="after",
                    retrieve="anchor", carry=0.3)
        torch.manual_seed(C)
        rand = lambda *s: torch.randn(*s, dtype=F64)
        q, k, v, context = l2(rand(T, H, d)), l2(rand(T, H, d)), rand(T, H, d), rand(T, H, d)
        gates = (-F.softplus(rand(T, H) - 2), *(torch.sigmoid(rand(T, H) + bias) for bias in (2, -2, 2)))
        leaves = [u.requires_grad_() for u in (q, k, v, *gates, context)]
        par = {"maps": 0.2 * rand(H, 5, d, d), "w1": 0.5 * rand(H, d, d), "w2": 0.2 * rand(H, d, d)}
        leaves += [u.requires_grad_() for u in par.values()]
        zero = lambda *s: torch.zeros(*s, dtype=F64)
        a = sequential(case, *leaves[:8], par, zero(H, 4, d, d), zero(H, d, d), zero(H, 4, C, d), zero(H, 3, C))[:2]
        b = chunked(case, *leaves[:8], par, zero(H, 4, d, d), zero(H, d, d))
        weight = [rand(T, H, d), rand(T, H, d)]
        ga, gb = (torch.autograd.grad(sum((u * w).sum() for u, w in zip(r, weight)), leaves) for r in (a, b))
        expect(f"chunk form against definition, chunks of {C}: y, m", b, a, 1e-12)
        expect(f"chunk form against definition, chunks of {C}: gradients", gb, ga, 1e-11)


class Memory(torch.nn.Module):
    def __init__(self, d):
        super().__init__()
        self.a1, self.a2 = (torch.nn.Parameter(torch.zeros(d, d)) for _ in range(2))

    def forward(self, u):
        return u + F.silu(u @ self.a1) @ self.a2


def make_update():
    """One token of titans-pytorch's NeuralMemory, into weights and a momentum that are not zero."""
    # one file of the package is wanted, not the transformers that the rest of it imports
    package = types.ModuleType("titans_pytorch")
    package.__path__ = importlib.util.find_spec("titans_pytorch").submodule_search_locations
    sys.modules["titans_pytorch"] = package
    from titans_pytorch.neural_memory import NeuralMemory, TensorDict
    d, rng = 12, np.random.RandomState(5)
    draws = as_f32({"kappa": rng.standard_normal(d), "nu": rng.standard_normal(d),
                    "a1": rng.standard_normal((d, d)), "a2": rng.standard_normal((d, d)),
                    "s1": rng.standard_normal((d, d)), "s2": rng.standard_normal((d, d)),
                    "gates": np.array([0.8, 0.03, 0.1])})  # momentum, step, forgetting
    torch.set_default_dtype(F64)
    torch.manual_seed(0)
    t = {n: torch.from_numpy(a).double() for n, a in draws.items()}
    half = lambda pred, target: 0.5 * (pred - target).square().sum(-1)
    net = NeuralMemory(d, chunk_size=1, model=Memory(d), store_memory_loss_fn=half, pre_rmsnorm=False,
                       mem_model_norm_add_residual=False, adaptive_step_transform=lambda u: u)
    kappa, nu, (eta, theta, alpha) = t["kappa"], t["nu"], t["gates"]
    # its projections are linear in one input: give them matrices that make what we want of ours
    x = torch.zeros(d)
    x[0] = 1
    with torch.no_grad():
        for module, column in ((net.to_keys[0] if isinstance(net.to_keys, torch.nn.Sequential) else net.to_keys, kappa),
                               (net.to_values[0] if isinstance(net.to_values, torch.nn.Sequential) else net.to_values,
                                nu)):
            module.weight.zero_()
            module.weight[:, 0] = column
        for module, value in ((net.to_adaptive_step, theta), (net.to_momentum, torch.logit(eta)),
                              (net.to_decay_factor, torch.logit(alpha))):
            module[0].weight.zero_()
            module[0].bias.fill_(value)
    weights = TensorDict({"a1": t["a1"][None], "a2": t["a2"][None]}, batch_size=[])
    momentum = TensorDict({"a1": t["s1"][None, None], "a2": t["s2"][None, None]}, batch_size=[])
    updates, state, *_ = net.store_memories(x[None, None], weights, past_state=(weights, momentum))
    last_update, last_momentum = state.states
    got = {"final.a1": last_update["a1"][0], "final.a2": last_update["a2"][0],
           "final.s1": last_momentum["a1"].reshape(d, d), "final.s2": last_momentum["a2"].reshape(d, d)}
    one = lambda u: u[None]
    delta, p, e = inner_gradient(one(kappa), one(nu), one(t["a1"]), one(t["a2"]))
    s1, s2 = eta * t["s1"] - theta * outer(one(kappa), delta)[0], eta * t["s2"] - theta * outer(p, e)[0]
    own = {"final.s1": s1, "final.s2": s2, "final.a1": (1 - alpha) * t["a1"] + s1, "final.a2": (1 - alpha) * t["a2"] + s2}
    expect("one update against titans-pytorch", [own[n] for n in got], list(got.values()), 1e-12)
    torch.set_default_dtype(F32)
    from importlib.metadata import version
    meta = {"source": f"titans-pytorch {version('titans-pytorch')} (MIT), NeuralMemory.store_memories, torch "
                      f"{torch.__version__}"}
    return draws, {n: u.detach() for n, u in got.items()}, meta


# ------------------------------------------------------------------------------------------------ the files


def write(path, arrays, metadata):
    header, data = {"__metadata__": dict(sorted(metadata.items()))}, b""
    for n in sorted(arrays):
        raw = arrays[n].astype("<f4").tobytes()
        header[n] = {"dtype": "F32", "shape": list(arrays[n].shape), "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def make_layer(case):
    D, H, d, T, N = case["shape"]
    arrays = draw(case)
    result = differentiate(layer(case), arrays)
    narrow = differentiate(layer(case), arrays, F32)
    worst = max((n for n in result if result[n].abs().max() > 0), key=lambda n: error(narrow[n].double(), result[n]))
    print(f"  in f32, worst: {worst} {error(narrow[worst].double(), result[worst]):.1e}")
    meta = {"num_heads": H, "head_dim": d, "hidden_size": D, "rms_norm_eps": EPSILON, "position": case["position"],
            "rms_norm_before_every_linear": "true", "persistent_memory_slots": N, "chunk": case["chunk"],
            "local_window_size": case["segment"], "core": case["core"], "update": case["update"],
            "retrieve": case["retrieve"], "segment_carry": case["carry"],
            "source": f"own f64: the definition written out in make_titans.py, torch {torch.__version__} autograd"}
    return arrays, result, {n: str(v) for n, v in meta.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("."), metavar="DIR")
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    check_chunk_form()
    total = 0
    for name in [*CASES, "titans_update"]:
        print(name)
        arrays, result, meta = make_layer(CASES[name]) if name in CASES else make_update()
        path = options.out / f"{name}.safetensors"
        write(path, arrays | {n: u.numpy().astype(np.float32) for n, u in result.items()}, meta)
        total += path.stat().st_size
        print(f"  {path.stat().st_size} bytes, sha256 {hashlib.sha256(path.read_bytes()).hexdigest()[:16]}")
    print(f"{total} bytes in all")
    if failures:
        sys.exit("cross-checks failed: " + ", ".join(failures))


if __name__ == "__main__":
    main()
