#!/usr/bin/env python3
"""Decode and prefill beside the public ternary engines for CPUs, on this machine.

    bench/peers.py --ours MODEL.b158 [--ik PROGRAM] [--llama PROGRAM] [--bitnet PROGRAM] [options]     --help lists them

Every PROGRAM is the `llama-bench` of that project, built apart from Chimera by the project's own instructions:

    --ik      github.com/ikawrakow/ik_llama.cpp    IQ2_BN, and IQ2_BN_R4 with rows interleaved by four
    --llama   github.com/ggml-org/llama.cpp        TQ2_0 and TQ1_0
    --bitnet  github.com/microsoft/BitNet          I2_S; its embedding and head are TQ2_0

Build it optimised, for the CPU alone and with all its instructions; for a comparison without AVX-512 a second time with all
of AVX-512 off, and give ours --ours-options='--cpu-mask avx512'. BitNet wants Clang. `--ik` runs without flash attention, so
a build that leaves those kernels out will do; --ik-options changes that.

The peers' models are written here where they are missing, about 0.6 GB each: llama's shape (BitNet's has two norms more),
28 layers of 2560 / 6912, 40 heads of 64, 32,000 tokens, the head tied to the embedding. Weights are random trits and all
scales 0.02; what they say does not matter to speed. MODEL.b158 should have the same shape: dense, one loop, tied head.

In turns: ours, then each peer, on one thread, then on two; each turn a prompt and then tokens written one by one, from an
empty state, after a run that is not counted. Figures are medians over the turns. `weights/s` is tokens a second times the
weights one token takes; `GB/s`, of decode only, tokens a second times bytes of the file (of ours, those one token touches,
with the state). `ratio` is the median of the turns' ratios of weights a second, ours to the peer: above 1 we are faster.
Look at the load first: the peers' threads wait for one another in a loop, so with other work on the same CPUs two of them
may be slower than one, which flatters us.

An engine whose program is not given is left out, and the report says so. With none the program ends with code 77, as
skipped tests do.
"""

import argparse
import json
import os
import pathlib
import random
import shlex
import statistics
import struct
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
ENGINES = {"ik": "ik_llama.cpp", "llama": "llama.cpp", "bitnet": "bitnet.cpp"}
KINDS = {"ik": ("IQ2_BN", "IQ2_BN_R4"), "llama": ("TQ2_0", "TQ1_0"), "bitnet": ("I2_S",)}


# ---------------------------------------------------------------------------------- the peers' models (GGUF, version 3)

WIDTH, FFN, HEADS, VOCAB = 2560, 6912, 40, 32000
NUMBERS = {"F32": 0, "TQ1_0": 34, "TQ2_0": 35, "I2_S": 36, "IQ2_BN": 135, "IQ2_BN_R4": 335}
HALF, FLOAT = struct.pack("<e", 0.02), struct.pack("<f", 0.02)

# A random byte to one of whole trits: four in two bits each, or in base 3, scaled to 256, five, or four and a zero.
PAIRS = bytes(sum(b // 3**i % 3 << 2 * i for i in range(4)) for b in range(256))
FIVES = bytes((b % 243 * 256 + 242) // 243 for b in range(256))
FOURS = bytes((b % 81 * 3 * 256 + 242) // 243 for b in range(256))


def blocks(size, count, scales, table=PAIRS):
    """`count` blocks of `size` bytes: trits, and `scales`, bytes that all blocks have at the places given."""
    data = bytearray(random.randbytes(size * count).translate(table))
    for place, value in scales.items():
        for i, byte in enumerate(value):
            data[place + i::size] = bytes([byte]) * count
    return data


def matrix(kind, columns, rows):
    """A random matrix of that kind, in the bytes of its engine."""
    if kind == "TQ2_0":
        return blocks(66, rows * columns // 256, {64: HALF})
    if kind == "TQ1_0":
        data = blocks(54, rows * columns // 256, {52: HALF}, FIVES)
        for place in range(48, 52):
            data[place::54] = data[place::54].translate(FOURS)
        return data
    if kind == "IQ2_BN":
        return blocks(4 + columns // 4, rows, {0: FLOAT})
    if kind == "IQ2_BN_R4":
        return blocks(16 + columns, rows // 4, {0: FLOAT * 4})
    assert kind == "I2_S"
    return blocks(rows * columns // 4, 1, {}) + FLOAT + bytes(28)


def tensors(kind, layers):
    """Names, kinds and shapes, columns first. Rows of the embedding are also read alone, which not every kind can do."""
    yield "token_embd.weight", {"I2_S": "TQ2_0", "IQ2_BN_R4": "IQ2_BN"}.get(kind, kind), (WIDTH, VOCAB)
    yield "output_norm.weight", "F32", (WIDTH,)
    shapes = {"attn_q": (WIDTH, WIDTH), "attn_k": (WIDTH, WIDTH), "attn_v": (WIDTH, WIDTH), "attn_output": (WIDTH, WIDTH),
              "ffn_gate": (WIDTH, FFN), "ffn_up": (WIDTH, FFN), "ffn_down": (FFN, WIDTH)}
    norms = {"attn_norm": WIDTH, "ffn_norm": WIDTH}
    if kind == "I2_S":
        norms |= {"attn_sub_norm": WIDTH, "ffn_sub_norm": FFN}
    for layer in range(layers):
        yield from ((f"blk.{layer}.{name}.weight", "F32", (width,)) for name, width in norms.items())
        yield from ((f"blk.{layer}.{name}.weight", kind, shape) for name, shape in shapes.items())


def weights_per_token(layers):
    return layers * (4 * WIDTH * WIDTH + 3 * WIDTH * FFN) + WIDTH * VOCAB


def text(value):
    return struct.pack("<Q", len(value.encode())) + value.encode()


def metadata(kind, layers):
    """Keys and values; the vocabulary is bytes and filler."""
    architecture = "bitnet" if kind == "I2_S" else "llama"
    tokens = ["<unk>", "<s>", "</s>"] + [f"<0x{i:02X}>" for i in range(256)]
    types = [2, 3, 3] + [6] * 256 + [1] * (VOCAB - len(tokens))  # unknown, control, bytes, words
    tokens += [f"word{i}" for i in range(len(tokens), VOCAB)]
    array = lambda number, values: struct.pack("<IIQ", 9, number, len(values)) + b"".join(values)
    number = lambda value: struct.pack("<II", 4, value)
    pairs = {"general.architecture": struct.pack("<I", 8) + text(architecture)}
    for key, value in {"context_length": 4096, "embedding_length": WIDTH, "block_count": layers, "vocab_size": VOCAB,
                       "feed_forward_length": FFN, "attention.head_count": HEADS, "attention.head_count_kv": HEADS,
                       "rope.dimension_count": WIDTH // HEADS}.items():
        pairs[f"{architecture}.{key}"] = number(value)
    pairs[f"{architecture}.attention.layer_norm_rms_epsilon"] = struct.pack("<If", 6, 1e-5)
    pairs["tokenizer.ggml.model"] = struct.pack("<I", 8) + text("llama")
    pairs["tokenizer.ggml.tokens"] = array(8, [text(t) for t in tokens])
    pairs["tokenizer.ggml.scores"] = array(6, [struct.pack("<f", -i) for i in range(VOCAB)])
    pairs["tokenizer.ggml.token_type"] = array(5, [struct.pack("<i", t) for t in types])
    pairs["tokenizer.ggml.bos_token_id"] = number(1)
    pairs["tokenizer.ggml.eos_token_id"] = number(2)
    return struct.pack("<Q", len(pairs)), b"".join(text(key) + value for key, value in pairs.items())


def write_model(path, kind, layers):
    """Writes a model of that kind; the file appears when it is whole. Sizes are known before bytes: the head comes first."""
    padding = lambda size: bytes(-size % 32)
    sizes = {"F32": lambda c, r: 4 * c * r, "TQ2_0": lambda c, r: c * r // 256 * 66, "TQ1_0": lambda c, r: c * r // 256 * 54,
             "I2_S": lambda c, r: c * r // 4 + 32}
    every, infos, at = list(tensors(kind, layers)), b"", 0
    for name, stored, shape in every:
        infos += text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, NUMBERS[stored], at)
        size = sizes.get(stored, lambda c, r: r * (4 + c // 4))(shape[0], shape[1] if len(shape) > 1 else 1)
        at += size + len(padding(size))
    count, pairs = metadata(kind, layers)
    head = b"GGUF" + struct.pack("<IQ", 3, len(every)) + count + pairs + infos
    partial = path.with_suffix(".partial")
    random.seed(1)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(partial, "wb") as out:
            out.write(head + padding(len(head)))
            start = out.tell()
            for _, stored, shape in every:
                data = struct.pack("<f", 1) * shape[0] if stored == "F32" else matrix(stored, *shape)
                out.write(data)
                out.write(padding(len(data)))
            assert out.tell() - start == at
        partial.rename(path)
    except OSError as error:
        if partial.is_file():
            partial.unlink()
        sys.exit(f"peers.py: {path} cannot be written: {error.strerror}; --models chooses another folder")


# ---------------------------------------------------------------------------------- turns

def run_json(command):
    done = subprocess.run([str(word) for word in command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    words = shlex.join(map(str, command))
    if done.returncode:
        sys.exit(f"peers.py: '{words}' ended with {done.returncode}: {done.stderr.strip()[-400:]}")
    try:
        return json.loads(done.stdout)
    except json.JSONDecodeError as error:
        sys.exit(f"peers.py: what '{words}' printed is not JSON: {error}")


class Ours:
    """Chimera and one model. `chimera bench` reads a prompt and writes tokens, once to warm up and once that counts."""

    def __init__(self, a):
        self.engine, self.kind, self.a = "chimera", a.ours.name, a
        self.weights = a.ours_weights or run_json([a.chimera, "inspect", a.ours, "-o", "json"])["total"]["weights"]

    def run(self, threads):
        a = self.a
        report = run_json([a.chimera, "bench", a.ours, "--threads", threads, "--prefill", a.prefill, "--decode", a.decode,
                           "--repeats", 1, "-o", "json", *a.ours_options])
        return {row["name"]: (row["tokens_per_second"], row["bytes_per_token"]) for row in report["rows"]}


class Peer:
    """A llama-bench and one model; it warms up by itself."""

    def __init__(self, a, engine, kind):
        self.engine, self.kind, self.a = ENGINES[engine], kind, a
        self.weights = weights_per_token(a.layers)
        self.path = a.models / f"{kind}-{a.layers}.gguf"
        self.command = [getattr(a, engine), "-m", self.path, *getattr(a, f"{engine}_options")]
        if not self.path.exists():
            print(f"peers.py: writing {self.path}", file=sys.stderr)
            write_model(self.path, kind, a.layers)

    def run(self, threads):
        report = run_json([*self.command, "-p", self.a.prefill, "-n", self.a.decode, "-t", threads, "-r", 1, "-o", "json"])
        # the file's size: some count a tied head twice in "model_size"
        size = self.path.stat().st_size
        return {"decode" if row["n_gen"] else "prefill": (row["avg_ts"], size) for row in report}


def turns(a, runners):
    """Per runner, threads and test, the turns' tokens a second and bytes."""
    seen = {}
    for turn in range(a.rounds):
        for threads in a.threads:
            for runner in runners:
                print(f"turn {turn + 1} of {a.rounds}: {runner.engine} {runner.kind}, threads {threads}", file=sys.stderr)
                for test, figures in runner.run(threads).items():
                    seen.setdefault((test, threads, runner), []).append(figures)
    return seen


def summary(a, runners, seen):
    rows = []
    for test in ("decode", "prefill"):
        for threads in a.threads:
            weights = {r: [rate * r.weights for rate, _ in seen[test, threads, r]] for r in runners}
            for r in runners:
                one = {"test": test, "threads": threads, "engine": r.engine, "type": r.kind,
                       "tokens_per_second": statistics.median(rate for rate, _ in seen[test, threads, r]),
                       "weights_per_second": statistics.median(weights[r]),
                       "turns": [rate for rate, _ in seen[test, threads, r]]}
                if test == "decode":
                    one["bytes_per_second"] = statistics.median(rate * size for rate, size in seen[test, threads, r])
                if a.ours and r is not runners[0]:
                    one["ratios"] = [ours / theirs for ours, theirs in zip(weights[runners[0]], weights[r])]
                    one["ratio"] = statistics.median(one["ratios"])
                rows.append(one)
    return rows


COLUMNS = (("test", "test", "{}", 1), ("threads", "threads", "{}", 1), ("engine", "engine", "{}", 1),
           ("type", "type", "{}", 1), ("tokens_per_second", "tokens/s", "{:.1f}", 1),
           ("weights_per_second", "G weights/s", "{:.1f}", 1e-9), ("bytes_per_second", "GB/s", "{:.1f}", 1e-9),
           ("ratio", "ratio", "{:.2f}", 1))


def show(rows, notes, form):
    if form == "json":
        print(json.dumps({"rows": rows, **notes}, indent=1))
        return
    columns = [c for c in COLUMNS if any(c[0] in row for row in rows)]
    cells = [[head for _, head, _, _ in columns]]
    for row in rows:
        cells.append([how.format(row[key] * unit if unit != 1 else row[key]) if key in row else "-"
                      for key, _, how, unit in columns])
    if form == "md":
        cells.insert(1, ["---"] * len(columns))
        print("\n".join("| " + " | ".join(line) + " |" for line in cells) + "\n")
    else:
        wide = [max(len(line[i]) for line in cells) for i in range(len(columns))]
        for line in cells:
            print("  ".join(cell.ljust(w) for cell, w in zip(line, wide)).rstrip())
    print(f"{notes['turns']} turns; load {notes['load_before']:.1f} before, {notes['load_after']:.1f} after"
          + "".join(f"; left out: {name}" for name in notes["left_out"]))


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache")
    p.add_argument("--ours", type=pathlib.Path, metavar="MODEL.b158", help="our model; without it the peers run alone")
    p.add_argument("--chimera", default=ROOT / "build" / "cli" / "chimera", type=pathlib.Path, metavar="PROGRAM",
                   help="the command (%(default)s)")
    p.add_argument("--ours-weights", type=int, metavar="N",
                   help="weights one token takes (all of `chimera inspect`, which is right for one loop, dense and tied)")
    for engine, name in ENGINES.items():
        p.add_argument(f"--{engine}", type=pathlib.Path, metavar="PROGRAM", help=f"llama-bench of {name}")
    for engine, given in (("ours", ""), ("ik", "-fa 0"), ("llama", ""), ("bitnet", "")):
        p.add_argument(f"--{engine}-options", default=given, metavar="WORDS",
                       help="more options for that program" + (f" ({given})" if given else ""))
    p.add_argument("--types", metavar="A,B", help="of the peers (all)")
    p.add_argument("--models", default=cache / "chimera-peers", type=pathlib.Path, metavar="DIR",
                   help="where the peers' models are kept (%(default)s)")
    p.add_argument("--layers", default=28, type=int, metavar="N",
                   help="of the peers' models (28); fewer to try this program out")
    p.add_argument("--threads", default="1,2", metavar="A,B", help="of all engines (1,2)")
    p.add_argument("--prefill", default=512, type=int, metavar="N", help="tokens of the prompt (512)")
    p.add_argument("--decode", default=64, type=int, metavar="N", help="tokens written one by one (64)")
    p.add_argument("--rounds", default=5, type=int, metavar="N", help="turns (5)")
    p.add_argument("-o", "--output", default="text", choices=("text", "json", "md"))
    a = p.parse_args()

    for engine in ("ours", *ENGINES):
        setattr(a, f"{engine}_options", shlex.split(getattr(a, f"{engine}_options")))
    if not a.threads.replace(",", "").isdigit():
        p.error(f"--threads: '{a.threads}' is not a list of numbers")
    a.threads = [int(n) for n in a.threads.split(",")]
    known = [kind for kinds in KINDS.values() for kind in kinds]
    types = a.types.split(",") if a.types else known
    if not set(types) <= set(known):
        p.error(f"--types: '{a.types}' is not of {', '.join(known)}")
    if min(a.layers, a.prefill, a.decode, a.rounds, *a.threads) < 1:
        p.error("layers, tokens, threads and turns are 1 or more")
    for program in [getattr(a, e) for e in ENGINES] + [a.chimera if a.ours else None]:
        if program and not os.access(program, os.X_OK):
            p.error(f"{program} is not a program; the head of --help says which are meant")

    left_out = [f"{name} (no --{engine})" for engine, name in ENGINES.items() if not getattr(a, engine)]
    for name in left_out:
        print(f"peers.py: left out: {name}", file=sys.stderr)
    peers = [(engine, kind) for engine in ENGINES if getattr(a, engine) for kind in KINDS[engine] if kind in types]
    if not peers:
        print("SKIP: no peer; bench/peers.py --help says which there are", file=sys.stderr)
        sys.exit(77)
    runners = ([Ours(a)] if a.ours else []) + [Peer(a, engine, kind) for engine, kind in peers]
    before = os.getloadavg()[0]
    seen = turns(a, runners)
    show(summary(a, runners, seen), {"turns": a.rounds, "load_before": before, "load_after": os.getloadavg()[0],
                                     "left_out": left_out}, a.output)


if __name__ == "__main__":
    main()
