#!/usr/bin/env python3
"""Make the golden vectors of the layer loop from the public implementation, Parcae's DiagonalInjection.

    pip install torch==2.13.0 numpy safetensors
    git clone https://github.com/sandyresearch/parcae     # at dee8363 or later
    python make_loop.py parcae/parcae_lm/modules/injection.py --out DIR

loop_parcae.safetensors: one state driven through six passes in float64, rounded to f32 once. Its input matrix B is
diagonal here, and its start is the input itself, as this project chose; the decay and the gain are the public code's
(which takes Euler's rule for the gain). `e` [rows, width]; `A_log`, `dt_bias`, `B` [width]; `x1` .. `x6` [rows, width].
The first columns have decays near 0 and near 1.
"""

import argparse
import importlib.util
import pathlib
import types

import numpy as np
import torch
from safetensors.numpy import save_file

ROWS, WIDTH, PASSES = 5, 24, 6


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("injection", type=pathlib.Path)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    args = parser.parse_args()
    spec = importlib.util.spec_from_file_location("injection", args.injection)
    injection = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(injection)

    draw = np.random.Generator(np.random.MT19937(20))
    f32 = lambda shape, scale=1.0: (scale * draw.standard_normal(shape)).astype(np.float32)
    v = {"e": f32((ROWS, WIDTH)), "A_log": f32(WIDTH, 0.7), "dt_bias": f32(WIDTH), "B": 1 + f32(WIDTH, 0.3)}
    v["A_log"][:3] = 4, -6, 0
    v["dt_bias"][:3] = 3, -1, 0.21266

    leave = lambda *_: lambda tensor: None
    config = types.SimpleNamespace(recurrent_embedding_dimension=WIDTH, n_embd=WIDTH,
                                   init=types.SimpleNamespace(fn=leave))
    layer = injection.DiagonalInjection(config).double()
    with torch.no_grad():
        layer.A_log.copy_(torch.from_numpy(v["A_log"]))
        layer.dt_bias.copy_(torch.from_numpy(v["dt_bias"]))
        layer.B.copy_(torch.diag(torch.from_numpy(v["B"])))
        e = torch.from_numpy(v["e"]).double()
        x = e
        for p in range(1, PASSES + 1):
            x = layer(x, e)
            v[f"x{p}"] = x.numpy().astype(np.float32)
    save_file(v, args.out / "loop_parcae.safetensors")


if __name__ == "__main__":
    main()
