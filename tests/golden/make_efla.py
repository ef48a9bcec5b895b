#!/usr/bin/env python3
"""Make the golden vectors of the exact delta rule (`efla`, arXiv:2512.12602) from its authors' code.

    pip install torch==2.13.0 numpy==2.4.6
    python make_efla.py --out DIR                  fetches the code from GitHub, at the commit below
    python make_efla.py --out DIR --code mnist.py  uses a copy of that file

The authors published one loop, inside the classifier of their MNIST experiment. Its class is taken out of the file (which
itself wants data sets, plots and GPUs) and run unmodified, in float64: the projections before the loop are replaced by slices,
so that the loop gets the q, k, v and beta drawn here, and what follows the loop by nothing. It returns the answer to the last
row's question only; asked every unit vector, its answers are the rows of the state. There is no decay in it, and lambda gets
1e-6 added where it divides, which keys of 3 to 30 make smaller than 1.2e-7.

The other oracle is the exponential of the flow that the rule solves, row by row (torch.linalg.matrix_exp).

    gd_efla_public.safetensors   k, v [T, d], beta [T], q [d] of the last row, f32; f64: final.memory [d, d] and o [d] of
                                 the public loop (q divided by its length, not scaled), exact.memory [d, d] of the exponential

Inputs come from a fixed MT19937 seed and are rounded to f32 first; one thread, so a second run writes the same bytes.
"""

import argparse
import ast
import hashlib
import json
import pathlib
import struct
import sys
import urllib.request

import numpy as np
import torch

COMMIT = "6d6590c24b6ac503298e7fd75b94e82f50e805f0"
URL = f"https://raw.githubusercontent.com/declare-lab/EFLA/{COMMIT}/mnist.py"
CLASS = "LinearAttentionClassifier"
CLASS_SHA256 = "88c75d627f6351561874f887f758c210c1f8a869a40e3068d0440e6272576f80"  # of the class as ast.unparse writes it
T, D, SEED = 2048, 16, 12


def public_class(text):
    """The class alone, with the widths of this file in place of its module's constants."""
    node = next(n for n in ast.parse(text).body if isinstance(n, ast.ClassDef) and n.name == CLASS)
    found = hashlib.sha256(ast.unparse(node).encode()).hexdigest()
    if found != CLASS_SHA256:
        print(f"note: {CLASS} is not the one that the committed vectors came from: {found}", file=sys.stderr)
    names = {"torch": torch, "F": torch.nn.functional, "DIM": D, "SEQ_LEN": 1}
    exec(compile(ast.Module([node], []), "mnist.py", "exec"), names)
    return names[CLASS]


class Columns(torch.nn.Module):
    def __init__(self, start, end):
        super().__init__()
        self.columns = slice(start, end)

    def forward(self, x):
        return x[..., self.columns]


def public_loop(text, q, k, v, beta):
    """Answers to the questions q [n, d], asked after the last row."""
    model = public_class(text)("efla")
    nothing = torch.nn.Identity()
    model.input_proj = model.act = model.norm = model.classifier = nothing
    model.pos_emb = torch.nn.Parameter(torch.zeros(1, 1))
    model.q_proj, model.k_proj, model.v_proj = (Columns(i * D, (i + 1) * D) for i in range(3))
    model.beta_proj = Columns(3 * D, 3 * D + 1)
    rows = torch.cat([torch.zeros_like(k), k, v, torch.logit(beta)[:, None]], dim=-1).repeat(len(q), 1, 1)
    rows[:, -1, :D] = q
    with torch.no_grad():
        return model(rows)


def exponential(k, v, beta):
    S = torch.zeros(D, D)
    for kt, vt, bt in zip(k, v, beta):
        generator = torch.zeros(2 * D, 2 * D)
        generator[:D, :D] = -torch.outer(kt, kt)
        generator[:D, D:] = torch.outer(kt, vt)
        flow = torch.linalg.matrix_exp(bt * generator)
        S = flow[:D, :D] @ S + flow[:D, D:]
    return S


def closed_form(k, v, beta):
    S = torch.zeros(D, D)
    for kt, vt, bt in zip(k, v, beta):
        square = kt @ kt
        S = S + torch.outer(kt, vt - kt @ S) * (-torch.expm1(-bt * square) / square)
    return S


def write(path, arrays, metadata):
    """Header and data in sorted order, so that the bytes do not differ from run to run."""
    header, data = {"__metadata__": dict(sorted(metadata.items()))}, b""
    for n in sorted(arrays, key=lambda n: (arrays[n].dtype != np.float64, n)):
        raw = arrays[n].tobytes()
        header[n] = {"dtype": "F64" if arrays[n].dtype == np.float64 else "F32", "shape": list(arrays[n].shape),
                     "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("."), metavar="DIR")
    parser.add_argument("--code", type=pathlib.Path, metavar="mnist.py", help="the authors' file, instead of fetching it")
    options = parser.parse_args()
    text = options.code.read_text() if options.code else urllib.request.urlopen(URL).read().decode()
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)

    rng = np.random.RandomState(SEED)
    unit = lambda u: u / np.sqrt((u * u).sum(-1, keepdims=True))
    lengths = 10 ** rng.uniform(np.log10(3), np.log10(30), (T, 1))
    inputs = {"k": unit(rng.standard_normal((T, D))) * lengths, "v": rng.standard_normal((T, D)),
              "beta": 1 / (1 + np.exp(2 - 2 * rng.standard_normal(T))), "q": unit(rng.standard_normal(D))}
    inputs = {n: np.ascontiguousarray(a, dtype=np.float32) for n, a in inputs.items()}
    k, v, beta, q = (torch.from_numpy(inputs[n].astype(np.float64)) for n in ("k", "v", "beta", "q"))

    exact = exponential(k, v, beta)
    answers = public_loop(text, torch.cat([torch.eye(D), q[None] / q.norm()]), k, v, beta)
    results = {"final.memory": answers[:D], "o": answers[D], "exact.memory": exact}

    error = lambda a, b: ((a - b).square().mean().sqrt() / b.square().mean().sqrt()).item()
    public, closed = error(answers[:D], exact), error(closed_form(k, v, beta), exact)
    print(f"state after {T} rows against the exponential: public loop {public:.1e}, closed form {closed:.1e}")
    if public > 2e-7 or closed > 1e-12:
        sys.exit("a cross-check failed")
    path = options.out / "gd_efla_public.safetensors"
    options.out.mkdir(parents=True, exist_ok=True)
    write(path, inputs | {n: u.contiguous().numpy() for n, u in results.items()},
          {"head_dim": str(D), "rows": str(T), "tolerance": "rms error / rms of each tensor, f32 arithmetic: 2e-6",
           "source": f"declare-lab/EFLA mnist.py at {COMMIT}, class {CLASS}; torch {torch.__version__} linalg.matrix_exp"})
    print(f"{path.name} {path.stat().st_size} bytes, sha256 {hashlib.sha256(path.read_bytes()).hexdigest()[:16]}")


if __name__ == "__main__":
    main()
