"""The peer of tokenize_speed.rs: python tokenize_speed.py TOKENIZER_JSON MEGABYTES FILE..."""

import sys
import time

from tokenizers import Tokenizer

tok = Tokenizer.from_file(sys.argv[1])
tok.no_padding()
tok.no_truncation()
documents = [""]
for file in sys.argv[3:]:
    text = open(file, "rb").read().decode("utf-8", errors="ignore")
    for line in text.split("\n"):
        line += "\n"
        if len(documents[-1].encode()) < 4096:
            documents[-1] += line
        else:
            documents.append(line)
once, size = len(documents), int(sys.argv[2]) * 1_000_000
lengths = [len(d.encode()) for d in documents]
total, i = sum(lengths), 0
while total < size:
    documents.append(documents[i % once])
    total += lengths[i % once]
    i += 1
tok.encode_batch(documents[:64], add_special_tokens=False)
for _ in range(2):
    start = time.perf_counter()
    encodings = tok.encode_batch(documents, add_special_tokens=False)
    seconds = time.perf_counter() - start
    tokens = sum(len(e.ids) for e in encodings)
    print(f"{total / 1e6:.1f} MB, {tokens} tokens, {seconds:.2f} s, {total / 1e6 / seconds:.1f} MB/s", flush=True)
    del encodings
