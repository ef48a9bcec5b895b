#!/usr/bin/env python3
"""Writes o200k.txt: how tiktoken, the public implementation of o200k_base, encodes texts that anyone can have.

  python3 -m venv venv && venv/bin/pip install tiktoken==0.14.0 xxhash
  apt-get install libc6-dev locales unicode-data debian-faq-ja debian-faq-ko debian-faq-ru debian-faq-zh-cn
  venv/bin/python tests/golden/make_o200k.py DATA > tests/golden/o200k.txt

DATA holds o200k_base.tiktoken (sha256 446a9538..., the published rank file) and tinyshakespeare.txt. A line of the
output: the file, its bytes (unpacked), their XXH3 64, the tokens, and the XXH3 64 of the ids as little-endian i32.
"""
import array
import base64
import gzip
import hashlib
import os
import sys

import tiktoken
import xxhash

RANKS = "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d"
PATTERN = "|".join([  # o200k_base in tiktoken_ext/openai_public.py
    r"""[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?""",
    r"""[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?""",
    r"""\p{N}{1,3}""",
    r""" ?[^\s\p{L}\p{N}]+[\r\n/]*""",
    r"""\s*[\r\n]+""",
    r"""\s+(?!\S)""",
    r"""\s+""",
])
FILES = ["tinyshakespeare.txt",
         "/usr/include/stdio.h", "/usr/include/math.h", "/usr/include/elf.h",
         "/usr/share/unicode/emoji/emoji-test.txt", "/usr/share/unicode/emoji/emoji-zwj-sequences.txt",
         "/usr/share/unicode/NamesList.txt"]
FILES += ["/usr/share/i18n/locales/" + name for name in
          "am_ET ar_SA el_GR fa_IR he_IL hi_IN ja_JP ka_GE km_KH ko_KR my_MM ru_RU ta_IN th_TH vi_VN zh_CN".split()]
FILES += [f"/usr/share/doc/debian/FAQ/debian-faq.{name}.txt.gz" for name in "ja ko ru zh-cn".split()]


def main(data):
    lines = open(os.path.join(data, "o200k_base.tiktoken"), "rb").read()
    assert hashlib.sha256(lines).hexdigest() == RANKS
    ranks = {base64.b64decode(token): int(rank) for token, rank in (line.split() for line in lines.splitlines())}
    encoding = tiktoken.Encoding("o200k_base", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens={})
    print("# made by make_o200k.py with tiktoken", tiktoken.__version__)
    for name in FILES:
        text = open(os.path.join(data, name), "rb").read()
        if name.endswith(".gz"):
            text = gzip.decompress(text)
        ids = array.array("i", encoding.encode_ordinary(text.decode("utf-8")))
        if sys.byteorder == "big":
            ids.byteswap()
        print(name, len(text), f"{xxhash.xxh3_64_intdigest(text):016x}", len(ids),
              f"{xxhash.xxh3_64_intdigest(ids.tobytes()):016x}")


main(sys.argv[1])
