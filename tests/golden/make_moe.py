#!/usr/bin/env python3
"""Make the golden vectors of the mixture of experts (`moe`) from a public implementation.

Packages and use as make_gd.py, whose file format this shares:

    pip install torch==2.13.0 transformers==5.24.0 numpy==2.4.6
    python make_moe.py --out DIR

The public code, transformers' DeepseekV3MoE with one group of experts, runs unmodified in float64 on inputs rounded to
f32 first; results are rounded to f32 once.

    file                        what
    moe_deepseek.safetensors    2 of 16 experts and a shared one
    moe_many.safetensors        3 of 5 experts and two shared ones (one of twice the width there), a stronger bias
    moe_choice.safetensors      of both, FILE.choice [T, k] I64, rising, and FILE.weight [T, k] in that order

Names: inputs `x`, `params.*`, `dy`; expected `y`, `dx`, `grad.*`. T rows of D columns, expert e of inner width I:

    x, y [T, D]   router [E, D]   router_bias [E]   gate_e, up_e [I, D]   down_e [D, I]   the shared experts come last
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
import transformers
from transformers.models.deepseek_v3 import modeling_deepseek_v3 as deepseek

F64 = torch.float64
# D, experts, chosen, shared, inner, T, of the bias
CASES = {"moe_deepseek": (16, 16, 2, 1, 24, 60, 0.05), "moe_many": (20, 5, 3, 2, 12, 33, 0.3)}
SEEDS = {"moe_deepseek": 3, "moe_many": 5}
failures = []


class _WideTorch:
    """The torch module, but float32 is float64."""
    float32 = float = torch.float64

    def __getattr__(self, attribute):
        return getattr(torch, attribute)


def draw(name):
    D, E, k, S, I, T, strength = CASES[name]
    rng = np.random.RandomState(SEEDS[name])
    wide = lambda rows, columns: rng.standard_normal((rows, columns)) / np.sqrt(columns)
    t = {"x": rng.standard_normal((T, D)), "dy": rng.standard_normal((T, D)), "params.router": wide(E, D),
         "params.router_bias": strength * rng.standard_normal(E)}
    for e in range(E + S):
        t |= {f"params.gate_{e}": wide(I, D), f"params.up_{e}": wide(I, D), f"params.down_{e}": wide(D, I)}
    return {n: np.ascontiguousarray(a, dtype=np.float32) for n, a in t.items()}


def theirs(name, t):
    """Our parameters in their places: y, and what the gate says."""
    D, E, k, S, I, T, _ = CASES[name]
    config = deepseek.DeepseekV3Config(
        hidden_size=D, moe_intermediate_size=I, n_routed_experts=E, n_shared_experts=S, num_experts_per_tok=k,
        n_group=1, topk_group=1, norm_topk_prob=True, routed_scaling_factor=1.0, hidden_act="silu")
    config._experts_implementation = "eager"
    module = deepseek.DeepseekV3MoE(config).to(F64)
    stack = lambda part, which, dim: torch.cat([t[f"params.{part}_{e}"] for e in which], dim=dim)
    shared = range(E, E + S)
    state = {
        "gate.weight": t["params.router"], "gate.e_score_correction_bias": t["params.router_bias"].detach(),
        "experts.gate_up_proj": torch.stack(
            [torch.cat([t[f"params.gate_{e}"], t[f"params.up_{e}"]]) for e in range(E)]),
        "experts.down_proj": torch.stack([t[f"params.down_{e}"] for e in range(E)]),
        "shared_experts.gate_proj.weight": stack("gate", shared, 0),
        "shared_experts.up_proj.weight": stack("up", shared, 0),
        "shared_experts.down_proj.weight": stack("down", shared, 1)}
    with mock.patch.object(deepseek, "torch", _WideTorch()):
        y = torch.func.functional_call(module, state, (t["x"].unsqueeze(0),))[0]
        gate = {n.removeprefix("gate."): v for n, v in state.items() if n.startswith("gate.")}
        _, weight, choice = torch.func.functional_call(module.gate, gate, (t["x"],))
    order = choice.argsort(-1)
    return y, choice.gather(-1, order), weight.gather(-1, order)


def ours(t, choice):
    """The formula, with their choice."""
    score = torch.sigmoid(t["x"] @ t["params.router"].T)
    routed = score.shape[1]
    weight = score.gather(1, choice)
    weight = weight / (weight.sum(-1, keepdim=True) + 1e-20)

    def expert(e, x):
        h = x @ t[f"params.gate_{e}"].T
        return (h * torch.sigmoid(h) * (x @ t[f"params.up_{e}"].T)) @ t[f"params.down_{e}"].T

    experts = sum(n.startswith("params.gate_") for n in t)
    rows = []
    for x, which, w in zip(t["x"], choice, weight):
        y = sum((expert(e, x) for e in range(routed, experts)), torch.zeros_like(x))
        rows.append(y + sum(w[i] * expert(int(e), x) for i, e in enumerate(which)))
    return torch.stack(rows)


def rms_error(got, want):
    return ((got - want).square().mean().sqrt() / want.square().mean().sqrt()).item()


def write(path, arrays, metadata):
    header, data = {"__metadata__": dict(sorted(metadata.items()))}, b""
    for n in sorted(arrays):
        whole = arrays[n].dtype.kind == "i"
        raw = arrays[n].astype("<i8" if whole else "<f4").tobytes()
        header[n] = {"dtype": "I64" if whole else "F32", "shape": list(arrays[n].shape),
                     "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def report(path):
    print(f"{path.name:28} {path.stat().st_size:8} bytes  sha256 {hashlib.sha256(path.read_bytes()).hexdigest()[:16]}")


def main():
    parser = argparse.ArgumentParser(description="golden vectors of the mixture of experts")
    parser.add_argument("--out", type=pathlib.Path, required=True)
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    chosen = {}
    for name, (D, E, k, S, I, T, _) in CASES.items():
        arrays = draw(name)
        leaves = {n: torch.from_numpy(a).to(F64).requires_grad_() for n, a in arrays.items() if n != "dy"}
        y, choice, weight = theirs(name, leaves)
        learnt = {n: u for n, u in leaves.items() if n != "params.router_bias"}
        grads = torch.autograd.grad((y * torch.from_numpy(arrays["dy"]).to(F64)).sum(), list(learnt.values()))
        error = rms_error(ours(leaves, choice), y)
        # f32 must choose the same: how far the last chosen stands above the first that is not
        biased = torch.sigmoid(leaves["x"] @ leaves["params.router"].T) + leaves["params.router_bias"]
        ranked = biased.sort(-1, descending=True)[0]
        gap = (ranked[:, k - 1] - ranked[:, k]).min().item()
        load = torch.bincount(choice.flatten(), minlength=E).tolist()
        plain = torch.topk(torch.sigmoid(leaves["x"] @ leaves["params.router"].T), k)[1].sort(-1)[0]
        moved = (plain != choice).any(-1).sum().item()
        print(f"{name}: formula {error:.1e}, least gap {gap:.1e}, load {load}, rows the bias sends elsewhere {moved}")
        if error > 1e-14 or gap < 1e-4 or not moved:
            failures.append(name)
        arrays |= {"y": y.detach().numpy()}
        arrays |= {("dx" if n == "x" else n.replace("params.", "grad.")): g.numpy() for n, g in zip(learnt, grads)}
        metadata = {"hidden_size": D, "n_routed_experts": E, "num_experts_per_tok": k, "n_shared_experts": S,
                    "moe_intermediate_size": I, "rms_norm_before_every_linear": "false",
                    "source": f"transformers {transformers.__version__} DeepseekV3MoE, n_group 1",
                    "reference": "computed in float64 from these f32 inputs, rounded to f32 once",
                    "tolerance": "rms error / rms of each tensor, f32 arithmetic: 1e-6"}
        write(out / f"{name}.safetensors", arrays, {n: str(v) for n, v in metadata.items()})
        report(out / f"{name}.safetensors")
        chosen |= {f"{name}.choice": choice.numpy(), f"{name}.weight": weight.detach().numpy()}
    write(out / "moe_choice.safetensors", chosen, {"source": f"transformers {transformers.__version__} DeepseekV3TopkRouter"})
    report(out / "moe_choice.safetensors")
    sys.exit(f"failed: {', '.join(failures)}" if failures else 0)


if __name__ == "__main__":
    main()
