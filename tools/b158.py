#!/usr/bin/env python3
"""Decodes a .b158 model file into float32 arrays: the file format as a program. Usage: b158.py MODEL [OUT.npz]

A .b158 is a safetensors file. `encoding.NAME` in its metadata says how parameter NAME is stored:
  t5;out=O;in=I;group=G  NAME.codes and NAME.scales: codes of -1, 0, +1 in tiles of 16 rows; t2 and sherry alike
  i8;out=O;in=I;block=B  NAME.q and NAME.scale: int8, one scale a row, rows padded to whole blocks
  f32                    NAME as it is
A model with a mixture of experts has their matrices in a second file beside it, named by `experts` in the metadata.
"""
import json, os, signal, sys

import numpy as np


def read_safetensors(path):
    """{name: array} and the metadata, from a u64 header length, a JSON header and the tensors' bytes."""
    raw = np.fromfile(path, np.uint8)
    start = 8 + int(raw[:8].view("<u8")[0])
    header = json.loads(raw[8:start].tobytes())
    metadata, tensors = header.pop("__metadata__", {}), {}
    for name, t in header.items():
        begin, end = (start + offset for offset in t["data_offsets"])
        tensors[name] = raw[begin:end].view({"U8": "u1", "I8": "i1", "F32": "<f4"}[t["dtype"]]).reshape(t["shape"])
    return tensors, metadata


SHERRY = np.array([np.insert(abs(2 * np.array([f & 1, f >> 1 & 1, 1]) - f // 16 * 2), f // 4 % 4, 1)
                   for f in range(32)])


def decode_codes(kind, codes, blocks):
    """Codes w + 1 as [rows, inputs], padding included, from [tiles, bytes]; include/chimera/plugin.h has the layout."""
    each, size, rest = {"t2": (4, 1024, 256), "t5": (5, 1024, 256), "sherry": (2, 320, 192)}[kind]
    tiles, full = len(codes), blocks // each
    whole, tail = codes[:, :full * size].reshape(tiles, full, size), codes[:, full * size:].reshape(tiles, -1, rest)
    if kind == "sherry":  # nibbles [tile, block, part, row and i], mirrors alike: an entry of the table has four inputs
        nibbles = np.concatenate([whole[:, :, :256].reshape(tiles, -1, 128), tail[:, :, :128]], 1)
        mirrors = np.concatenate([whole[:, :, 256:].reshape(tiles, -1, 32), tail[:, :, 128:160]], 1)
        forms = np.stack([nibbles.reshape(tiles, blocks, 2, 64) >> s & 15 for s in (0, 4)], 3)
        forms = forms.reshape(tiles, blocks, 4, 64)
        forms = forms + 16 * np.unpackbits(mirrors, 2, bitorder="little").reshape(tiles, blocks, 4, 64)
        return SHERRY[forms].reshape(tiles, blocks, 4, 16, 4, 4).transpose(0, 3, 1, 2, 4, 5).reshape(tiles * 16, -1)
    whole, tail = whole.reshape(tiles, -1, 16, 16, 4), tail.reshape(tiles, -1, 4, 16, 4)  # [tile, unit, j, row, i]
    two_bits = lambda c: [c >> 2 * f & 3 for f in range(4)]
    fields = two_bits(whole) if kind == "t2" else [whole % 84 // 3**f % 3 for f in range(4)] + [whole // 84]
    return np.concatenate([np.stack(f, 2).transpose(0, 4, 1, 2, 3, 5).reshape(tiles * 16, -1)
                           for f in (fields, two_bits(tail))], 1)


def decode_ternary(kind, codes, scales, out, inputs, group):
    trits, tiles = decode_codes(kind, codes, -(-inputs // 64)).astype(np.float32) - 1, len(codes)
    # Of each tile 16 f32 row scales, then for every group of inputs 16 u8; a weight's scale is their product.
    rows = np.ascontiguousarray(scales[:, :64]).view("<f4").reshape(tiles, 1, 16)
    groups = (scales[:, 64:].reshape(tiles, -1, 16) * rows).transpose(0, 2, 1).reshape(tiles * 16, -1)
    return trits[:out, :inputs] * np.repeat(groups, group, axis=1)[:out, :inputs]


def decode(path):
    """{parameter: float32 array}"""
    (tensors, metadata), parameters = read_safetensors(path), {}
    for key, encoding in metadata.items():
        if key.startswith("encoding."):
            name, (kind, *fields) = key[len("encoding."):], encoding.split(";")
            field = {k: int(v) for k, v in (f.split("=") for f in fields)}
            if kind in ("t2", "t5", "sherry"):
                codes, scales = tensors[name + ".codes"], tensors[name + ".scales"]
                parameters[name] = decode_ternary(kind, codes, scales, *field.values())
            elif kind == "i8":
                parameters[name] = tensors[name + ".q"][:, :field["in"]] * tensors[name + ".scale"][:, None]
            else:
                parameters[name] = tensors[name]
    if "experts" in metadata:
        beside = [os.path.join(os.path.dirname(p), metadata["experts"]) for p in (path, os.path.realpath(path))]
        parameters |= decode(next(filter(os.path.exists, beside), beside[0]))
    return parameters


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # a reader may have seen enough, as `head` has
    model = decode(sys.argv[1]) if len(sys.argv) in (2, 3) else sys.exit("usage: b158.py MODEL [OUT.npz]")
    for name, w in model.items():
        print(f"{name:40} {str(w.shape):16} rms {np.sqrt(np.mean(w * w)):.5f}  zeros {np.mean(w == 0):.3f}")
    if len(sys.argv) > 2:
        np.savez(sys.argv[2], **model)
