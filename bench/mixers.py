#!/usr/bin/env python3
"""Each mixer's training speed beside public PyTorch code of the same layer on this CPU.

    bench/mixers.py [options]        --help lists them

In turns: bench/mixers of a build, then each public layer in f32 and in bf16; every turn all of that for one mixer, so that
what else the machine does meets all alike. The better type counts (one that is half as slow again in the first turn sits the
others out). `ratio` is the median of the turns' ratios of rows a second, our chunk form to the public code. `of CPU` is that
of CPU seconds, all threads together. Other programs on the same CPUs slow PyTorch down more than us, its threads wait for
one another: two of them made the ratio of `gd` twice as good for us. So look at the load first, or set
OMP_WAIT_POLICY=passive, with which the CPU seconds stay what they are.

Both sides make every gradient, of the input and of all parameters, and no optimiser runs. Width, heads, width of a head and
rows are the same; what the public layer lacks or has beside ours is in the column `compared`.

PyTorch is needed, and for each mixer the package that has it:

    pip install torch --index-url https://download.pytorch.org/whl/cpu
    pip install transformers xlstm mlstm_kernels titans-pytorch

Without PyTorch the program says so and ends with code 77, as skipped tests do; a mixer whose package is missing is
shown without a ratio.
"""

import argparse
import inspect
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time
from unittest import mock

ROOT = pathlib.Path(__file__).resolve().parent.parent
MIXERS = ("gd", "efla", "xlstm", "slstm", "titans", "sk", "attn", "attn-full")
TYPES = ("float32", "bfloat16")

try:
    import torch
except ImportError as missing:
    print(f"SKIP: {missing}; bench/mixers.py --help says how to get PyTorch, bench/mixers of a build runs without",
          file=sys.stderr)
    sys.exit(77)


# ---------------------------------------------------------------------------------- the public layers
#
# Each takes the arguments and a type and gives a function of the rows [1, rows, width], and the module whose parameters
# get gradients.

def qwen_gated_delta(a, dtype):
    from transformers.models.qwen3_next import modeling_qwen3_next as qwen
    # handed to a GPU package where one is installed: take the torch forms
    for name in ("torch_chunk_gated_delta_rule", "causal_conv1d_fn"):
        setattr(qwen, name, inspect.unwrap(getattr(qwen, name)))
    config = qwen.Qwen3NextConfig(
        hidden_size=a.heads * a.head_dim, linear_num_key_heads=a.heads, linear_num_value_heads=a.heads,
        linear_key_head_dim=a.head_dim, linear_value_head_dim=a.head_dim, linear_conv_kernel_dim=4,
        num_hidden_layers=1, layer_types=["linear_attention"])
    module = qwen.Qwen3NextGatedDeltaNet(config, layer_idx=0)
    return module, module


def transformers_mlstm(a, dtype):
    import transformers.utils
    with mock.patch.object(transformers.utils, "is_xlstm_available", lambda: False):  # its own layer
        from transformers.models.xlstm import modeling_xlstm as public
    if public.external_xlstm:
        raise ImportError("transformers was loaded with the package xlstm in place of its own layer")
    config = public.xLSTMConfig(hidden_size=a.heads * a.head_dim, num_heads=a.heads, num_hidden_layers=1,
                                qk_dim_factor=1.0, v_dim_factor=1.0, mode="train", chunk_size=64,
                                return_last_states=True, autocast_kernel_dtype=dtype)
    module = public.xLSTMLayer(config)
    return (lambda x: module(x)[0]), module


def xlstm_mlstm(a, dtype):
    from xlstm.xlstm_large.model import mLSTMBackendConfig, mLSTMLayer, mLSTMLayerConfig
    backend = mLSTMBackendConfig(chunkwise_kernel="chunkwise--native_custbw", sequence_kernel="native_sequence__native",
                                 step_kernel="native", mode="train", chunk_size=64, return_last_states=True,
                                 autocast_kernel_dtype=dtype)
    module = mLSTMLayer(mLSTMLayerConfig(embedding_dim=a.heads * a.head_dim, num_heads=a.heads, qk_dim_factor=1.0,
                                         mlstm_backend=backend))
    return (lambda x: module(x)[0]), module


def xlstm_slstm(a, dtype):
    from xlstm.blocks.slstm.layer import sLSTMLayer, sLSTMLayerConfig
    module = sLSTMLayer(sLSTMLayerConfig(embedding_dim=a.heads * a.head_dim, num_heads=a.heads, backend="vanilla",
                                         batch_size=1, dtype=dtype, dtype_b=dtype,
                                         enable_automatic_mixed_precision=False))
    module.reset_parameters()
    return module, module


def titans_memory(a, dtype, renewed=16):
    from titans_pytorch import NeuralMemory
    module = NeuralMemory(dim=a.heads * a.head_dim, dim_head=a.head_dim, heads=a.heads, chunk_size=16,
                          batch_size=renewed, default_model_kwargs={"depth": 2, "expansion_factor": 1.0})
    return (lambda x: module(x)[0]), module


def titans_memory_stale(a, dtype):
    return titans_memory(a, dtype, renewed=None)


def qwen_attention(a, dtype, window=None):
    from transformers.models.qwen3 import modeling_qwen3 as qwen
    config = qwen.Qwen3Config(hidden_size=a.heads * a.head_dim, num_attention_heads=a.heads,
                              num_key_value_heads=a.heads, head_dim=a.head_dim, num_hidden_layers=1,
                              attention_bias=False, attn_implementation="sdpa")
    module, rotary = qwen.Qwen3Attention(config, layer_idx=0), qwen.Qwen3RotaryEmbedding(config)
    positions = torch.arange(a.rows)
    mask = None  # causal
    if window:
        behind = positions[:, None] - positions[None]
        mask = ((behind >= 0) & (behind < window))[None, None]
    return (lambda x: module(x, rotary(x, positions[None]), mask)[0]), module


def qwen_attention_window(a, dtype):
    return qwen_attention(a, dtype, window=512)


PEERS = {
    "gd": [("transformers Qwen3NextGatedDeltaNet, chunk 64", "whole layer", qwen_gated_delta)],
    "xlstm": [("transformers xLSTMLayer, chunk 64, autograd", "whole layer", transformers_mlstm),
              ("xlstm mLSTMLayer, chunk 64, its own backward", "whole layer", xlstm_mlstm)],
    "slstm": [("xlstm sLSTMLayer, vanilla cell", "row by row; its gates see one head each, no output projection",
               xlstm_slstm)],
    "titans": [("titans-pytorch NeuralMemory, chunk 16, batch 16", "the memory with its projections; no core, slots, "
                "convolution", titans_memory),
               ("titans-pytorch NeuralMemory, chunk 16", "the same, every gradient at the weights of the first row",
                titans_memory_stale)],
    "attn": [("transformers Qwen3Attention, SDPA", "whole layer, a mask for the window of 512", qwen_attention_window)],
    "attn-full": [("transformers Qwen3Attention, SDPA", "whole layer, all rows before", qwen_attention)],
}
PEERS["titans-window"] = PEERS["titans"]


class Peer:
    """One public layer in one type."""

    def __init__(self, label, compared, build, a, dtype):
        self.label, self.compared, self.dtype = label, compared, dtype
        torch.manual_seed(1)
        forward, module = build(a, dtype)
        module.to(getattr(torch, dtype)).train()
        self.forward, self.module = forward, module
        self.x = torch.randn(1, a.rows, a.heads * a.head_dim, dtype=getattr(torch, dtype), requires_grad=True)
        self.dy = torch.randn_like(self.x)
        self.seconds, self.cpu = [], []

    def run(self):
        self.module.zero_grad()
        self.x.grad = None
        begin, cpu = time.monotonic(), time.process_time()
        self.forward(self.x).backward(self.dy)
        self.seconds.append(time.monotonic() - begin)
        self.cpu.append(time.process_time() - cpu)


def open_peers(a):
    peers = {}
    for mixer in a.mixers:
        peers[mixer] = []
        for label, compared, build in PEERS.get(mixer, []):
            for dtype in TYPES:
                try:
                    peer = Peer(label, compared, build, a, dtype)
                    peer.run()  # warms up
                    peer.seconds, peer.cpu = [], []
                    peers[mixer].append(peer)
                except Exception as error:  # a package that is missing, or cannot do this here
                    print(f"mixers.py: {label}, {dtype}: {type(error).__name__}: {error}".splitlines()[0],
                          file=sys.stderr)
    return peers


# ---------------------------------------------------------------------------------- turns

def ours(a, mixer):
    command = [a.program, "--mixers", mixer, "--rows", str(a.rows), "--heads", str(a.heads), "--head-dim",
               str(a.head_dim), "--threads", str(a.threads), "--forms", ",".join(a.forms),
               "--repeats", "1", "-o", "json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(done.returncode)
    return {(one["quantization"], one["form"]): one for one in json.loads(done.stdout)["mixers"]}


def turns(a, peers):
    here = {mixer: [] for mixer in a.mixers}
    for turn in range(a.repeats):
        for mixer in a.mixers:
            print(f"turn {turn + 1} of {a.repeats}: {mixer}", file=sys.stderr)
            here[mixer].append(ours(a, mixer))
            for peer in peers[mixer]:
                peer.run()
            for label in {peer.label for peer in peers[mixer]} if turn == 0 else ():
                best = min(peer.seconds[0] for peer in peers[mixer] if peer.label == label)
                peers[mixer] = [p for p in peers[mixer] if p.label != label or p.seconds[0] <= 1.5 * best]
    return here


def summary(a, here, peers):
    rows = []
    for mixer in a.mixers:
        rate = lambda form, kind: [one[kind, form]["rows_per_second"] for one in here[mixer]]
        for kind in ("ternary", "none"):
            chunk = rate("chunk", kind)
            one = {"mixer": mixer, "quantization": kind, "chunk": statistics.median(chunk)}
            if "step" in a.forms:
                step = rate("step", kind)
                one["step"] = statistics.median(step)
                forward = lambda form: [o[kind, form]["forward_seconds"] for o in here[mixer]]
                one["chunk_over_step"] = statistics.median(c / s for c, s in zip(chunk, step))
                one["forward_chunk_over_step"] = statistics.median(
                    s / c for c, s in zip(forward("chunk"), forward("step")))
            best = {}  # of each public code its better type
            for peer in peers[mixer]:
                if peer.label not in best or statistics.median(peer.seconds) < statistics.median(
                        best[peer.label].seconds):
                    best[peer.label] = peer
            for peer in best.values():
                theirs = [a.rows / s for s in peer.seconds]
                rows.append(one | {"public": statistics.median(theirs), "type": peer.dtype, "code": peer.label,
                                   "compared": peer.compared,
                                   "ratio": statistics.median(c / t for c, t in zip(chunk, theirs)),
                                   "cpu_ratio": statistics.median(
                                       t / o[kind, "chunk"]["cpu_seconds"] for o, t in zip(here[mixer], peer.cpu))})
            if not best:
                rows.append(one)
    return rows


COLUMNS = (("mixer", "mixer", "{}"), ("quantization", "quantization", "{}"), ("chunk", "chunk", "{:.0f}"),
           ("step", "step", "{:.0f}"), ("chunk_over_step", "chunk/step", "{:.2f}"),
           ("forward_chunk_over_step", "forward alone", "{:.2f}"), ("public", "public", "{:.0f}"),
           ("ratio", "ratio", "{:.1f}"), ("cpu_ratio", "of CPU", "{:.1f}"), ("type", "type", "{}"),
           ("code", "public code", "{}"), ("compared", "compared", "{}"))


def show(rows, form):
    if form == "json":
        print(json.dumps(rows, indent=1))
        return
    columns = [c for c in COLUMNS if any(c[0] in row for row in rows)]
    cells = [[head for _, head, _ in columns]]
    cells += [[how.format(row[key]) if key in row else "-" for key, _, how in columns] for row in rows]
    if form == "md":
        cells.insert(1, ["---"] * len(columns))
        print("\n".join("| " + " | ".join(line) + " |" for line in cells))
        return
    wide = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    for line in cells:
        print("  ".join(cell.ljust(w) for cell, w in zip(line, wide)).rstrip())


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = lambda allowed: lambda text: [n if n in allowed else p.error(
        f"'{n}' is none of {', '.join(allowed)}") for n in text.split(",")]
    p.add_argument("--build", default=ROOT / "build", type=pathlib.Path, help="a build of Chimera (build/)")
    p.add_argument("--mixers", default=list(MIXERS), type=names(MIXERS + ("titans-window",)), metavar="A,B")
    p.add_argument("--forms", default=["chunk", "step"], type=names(("chunk", "step")), metavar="A,B",
                   help="ours: chunk, which is always there, and step (both)")
    p.add_argument("--rows", default=4096, type=int)
    p.add_argument("--heads", default=8, type=int)
    p.add_argument("--head-dim", default=64, type=int)
    p.add_argument("--threads", default=2, type=int, help="of both sides (2)")
    p.add_argument("--repeats", default=5, type=int, help="turns (5)")
    p.add_argument("-o", "--output", default="text", choices=("text", "json", "md"))
    a = p.parse_args()
    a.program = a.build / "bench" / "mixers"
    if "chunk" not in a.forms:
        p.error("--forms: the public code is held against 'chunk'")
    if not os.access(a.program, os.X_OK):
        p.error(f"{a.program} is not there: meson setup {a.build} --buildtype=release && ninja -C {a.build}")
    torch.set_num_threads(a.threads)
    peers = open_peers(a)
    show(summary(a, turns(a, peers), peers), a.output)


if __name__ == "__main__":
    main()
