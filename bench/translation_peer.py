"""The peers of `genus train` and `genus translate` in `compare.py`, each workload in a process of its own, as `torch_peer.py`.

`train_pairs` is PyTorch's own `nn.Transformer`, post-norm as published: padded batches with key padding masks and a causal
mask, one table for both languages and the output, labels smoothed by 0.1, dropout 0, fused AdamW, gradients clipped to norm
1. Batches are those of `genus bench train --source --target --batch-tokens`: at most that many tokens on either side before
padding, in a shuffled order. Its fast path for training is PyTorch's choice.

`translate` is `transformers`' `MarianMTModel.generate`, batches of `batch` lines in file order or sorted by length,
padded to their longest; `ctranslate2` is CTranslate2 in float32 on the same folder, converted once, with its own batching by `batch` times
`beams` rows; both with the folder's tokenizer, tokenising included. All sides read the same folder, have the same beams, the
same length penalty and the same longest translation; with `as_source` every translation has as many tokens as its source, with
`new_tokens` all have that many (random weights end none). `make_marian` writes that folder: random weights with a vocabulary of
two SentencePiece models learned from the training text.
"""

import io
import json
import os
import random
import resource
import sys
import time
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def read(path, first=None):
    with open(path, encoding="utf-8") as file:
        return [line.rstrip("\n") for line in file][:first]


def make_marian(spec):
    """The Transformer's base size with random weights, and a tokenizer learned from `source` and `target`."""
    import sentencepiece
    import torch
    from transformers import MarianConfig, MarianMTModel

    folder = Path(spec["model"])
    folder.mkdir(parents=True, exist_ok=True)
    pieces = set()
    for path, name in ((spec["source"], "source.spm"), (spec["target"], "target.spm")):
        model = io.BytesIO()
        sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(read(path)), model_writer=model, vocab_size=7000,
                                                 character_coverage=1.0, minloglevel=2)
        (folder / name).write_bytes(model.getvalue())
        loaded = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
        pieces |= {loaded.id_to_piece(i) for i in range(loaded.get_piece_size())}
    order = ["</s>", "<unk>", *sorted(pieces - {"</s>", "<unk>", "<s>"}), "<pad>"]
    (folder / "vocab.json").write_text(json.dumps({p: i for i, p in enumerate(order)}, ensure_ascii=False), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(
        {"source_lang": "en", "target_lang": "de", "tokenizer_class": "MarianTokenizer", "model_max_length": 512}))
    # As OPUS-MT's models have it (and CTranslate2's converter expects): padding comes last, begins a target as a row of zeros,
    # and is never chosen.
    pad = len(order) - 1
    config = MarianConfig(
        vocab_size=len(order), max_position_embeddings=512, d_model=512, encoder_layers=6, decoder_layers=6,
        encoder_attention_heads=8, decoder_attention_heads=8, encoder_ffn_dim=2048, decoder_ffn_dim=2048,
        activation_function="relu", dropout=0.0, scale_embedding=True, pad_token_id=pad, decoder_start_token_id=pad,
        eos_token_id=0, forced_eos_token_id=None)
    torch.manual_seed(0)
    model = MarianMTModel(config)
    with torch.no_grad():
        # Wide enough that translations differ from line to line.
        model.model.shared.weight.normal_(std=0.06)
        model.model.shared.weight[pad] = 0
    model.generation_config.bad_words_ids = [[pad]]
    model.save_pretrained(folder)
    return {"vocab_size": len(order)}


def timed(spec, work):
    for _ in range(spec.get("warmup", 1)):
        work()
    seconds = []
    for _ in range(spec.get("runs", 1)):
        begin = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - begin)
    return seconds


def train_pairs(spec):
    import torch
    from torch import nn
    from transformers import MarianTokenizer

    tokenizer = MarianTokenizer.from_pretrained(spec["model"])
    pad = tokenizer.pad_token_id
    # Enough pairs for the batches that are timed.
    pairs = list(zip(read(spec["source"]), read(spec["target"]), strict=True))
    random.Random(0).shuffle(pairs)
    pairs = pairs[:spec["batches"] * spec["batch_tokens"] // 8]
    source = tokenizer([s for s, _ in pairs]).input_ids
    target = tokenizer(text_target=[t for _, t in pairs]).input_ids
    batches, at, counts = [], 0, {"tokens": 0, "padded": 0}
    while len(batches) < spec["batches"]:
        rows, n, m = [], 0, 0
        while max(n + len(source[at]), m + len(target[at])) <= spec["batch_tokens"]:
            n, m = n + len(source[at]), m + len(target[at])
            rows.append(at)
            at += 1
        stack = lambda ids: nn.utils.rnn.pad_sequence([torch.tensor(i) for i in ids], batch_first=True, padding_value=pad)
        labels = stack([target[r] for r in rows])
        batches.append((stack([source[r] for r in rows]), stack([[pad, *target[r][:-1]] for r in rows]), labels,
                        torch.arange(labels.shape[1]) >= torch.tensor([[len(target[r])] for r in rows])))
        counts["tokens"] += n + m
        counts["padded"] += batches[-1][0].numel() + labels.numel()

    class Model(nn.Module):
        def __init__(self, vocab, d=512):
            super().__init__()
            self.table = nn.Embedding(vocab, d)
            self.core = nn.Transformer(d, 8, 6, 6, 2048, dropout=0.0, batch_first=True)
            self.bias = nn.Parameter(torch.zeros(vocab))
            angle = torch.arange(512)[:, None] / 10000 ** (torch.arange(d // 2) / (d // 2))
            self.register_buffer("positions", torch.cat([angle.sin(), angle.cos()], 1))
            self.root = d ** 0.5

        def embed(self, ids):
            return self.table(ids) * self.root + self.positions[:ids.shape[1]]

        def forward(self, source, read, read_padding):
            n = read.shape[1]
            padding = source == pad
            causal = torch.ones(n, n, dtype=torch.bool).triu(1)
            y = self.core(self.embed(source), self.embed(read), tgt_mask=causal, tgt_is_causal=True,
                          src_key_padding_mask=padding, tgt_key_padding_mask=read_padding,
                          memory_key_padding_mask=padding)
            return nn.functional.linear(y, self.table.weight, self.bias)

    torch.manual_seed(0)
    model = Model(max(tokenizer.get_vocab().values()) + 1).train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.1, fused=True)
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=spec.get("precision") == "bf16")

    def steps():
        for source, read_, labels, padding in batches:
            with autocast:
                logits = model(source, read_, padding)
                loss = nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten().where(~padding.flatten(), -100),
                                                   label_smoothing=0.1)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
            loss.item()

    return {"seconds": timed(spec, steps), **counts}


def ends_at(lengths, end):
    """Each row's sequence gets exactly that many tokens, the end token last."""
    def process(ids, scores):
        last = lengths <= ids.shape[1]
        scores[~last, end] = -float("inf")
        scores[last] = -float("inf")
        scores[last, end] = 0.0
        return scores

    return process


def limits(spec, source):
    """The longest translation of a batch: what the longest source has and 50 more; or a number for all."""
    return spec.get("new_tokens") or max(map(len, source)) + 50


def translate(spec):
    import torch
    from transformers import AutoTokenizer, MarianMTModel, logging

    logging.set_verbosity_error()
    tokenizer = AutoTokenizer.from_pretrained(spec["model"])
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    model = MarianMTModel.from_pretrained(spec["model"], dtype=torch.float32).eval()
    model.generation_config.forced_eos_token_id = None
    lines = read(spec["lines"], spec.get("first"))
    out, counts = [None] * len(lines), {}

    def run():
        ids = [encode(tokenizer, line) for line in lines]
        order = list(range(len(lines)))
        if spec.get("order") == "sorted":
            order.sort(key=lambda i: -len(ids[i]))
        counts.update(tokens=0)
        for at in range(0, len(order), spec["batch"]):
            rows = order[at:at + spec["batch"]]
            batch = tokenizer.pad({"input_ids": [ids[i] for i in rows]}, return_tensors="pt")
            most = limits(spec, [ids[i] for i in rows])
            processors = []
            if spec.get("as_source"):
                lengths = torch.tensor([len(ids[i]) for i in rows]).repeat_interleave(spec["beams"])
                most, processors = int(lengths.max()), [ends_at(lengths, model.config.eos_token_id)]
            found = model.generate(**batch, num_beams=spec["beams"], max_new_tokens=most, logits_processor=processors,
                                   min_new_tokens=spec.get("new_tokens") or None, length_penalty=spec["length_penalty"],
                                   early_stopping=False, do_sample=False)
            found = found[:, 1:].tolist()
            for i, row in zip(rows, found):
                text = tokenizer.decode(row, skip_special_tokens=True)
                out[i] = text
                end = row.index(model.config.eos_token_id) + 1 if model.config.eos_token_id in row else len(row)
                counts["tokens"] += end

    with torch.inference_mode():
        seconds = timed(spec, run)
    write(spec, out)
    return {"seconds": seconds, "lines": len(lines), **counts}


def encode(tokenizer, line):
    """A line's ids with the end, which not every tokenizer adds."""
    ids, end = tokenizer(line).input_ids, tokenizer.eos_token_id
    return ids if ids and ids[-1] == end else [*ids, end]


def write(spec, out):
    if spec.get("output"):
        Path(spec["output"]).write_text("".join(line + "\n" for line in out), encoding="utf-8")


def converted(spec):
    """The folder that CTranslate2 reads."""
    import ctranslate2

    folder = Path(spec["model"] + ".ctranslate2")
    if not (folder / "model.bin").exists():
        converter = ctranslate2.converters.TransformersConverter(spec["model"])
        converter.convert(str(folder), force=True)
    return folder


def convert(spec):
    converted(spec)
    return {}


def ctranslate2(spec):
    import ctranslate2 as library
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(spec["model"])
    threads = spec.get("threads", 2)
    translator = library.Translator(str(converted(spec)), device="cpu", compute_type="float32", inter_threads=1, intra_threads=threads)
    lines = read(spec["lines"], spec.get("first"))
    out, counts = [None] * len(lines), {}

    def run():
        source = [tokenizer.convert_ids_to_tokens(encode(tokenizer, line)) for line in lines]
        # One limit for a call, so lines of like length share one; the library sorts and batches inside.
        order = sorted(range(len(lines)), key=lambda i: -len(source[i]))
        counts.update(tokens=0)
        whole = spec["batch"] if not spec.get("new_tokens") else len(lines)
        for at in range(0, len(order), whole):
            rows = order[at:at + whole]
            batch = [source[i] for i in rows]
            found = translator.translate_batch(
                batch, beam_size=spec["beams"], length_penalty=spec["length_penalty"], max_batch_size=spec["batch"],
                max_decoding_length=limits(spec, batch), min_decoding_length=spec.get("new_tokens") or 1,
                max_input_length=0)
            for i, result in zip(rows, found):
                ids = tokenizer.convert_tokens_to_ids(result.hypotheses[0])
                out[i] = tokenizer.decode(ids, skip_special_tokens=True)
                # The end is not among the tokens it gives.
                counts["tokens"] += len(ids) + (0 if spec.get("new_tokens") else 1)

    seconds = timed(spec, run)
    write(spec, out)
    return {"seconds": seconds, "lines": len(lines), **counts, "ctranslate2": library.__version__}


def main():
    spec = json.loads(sys.argv[1])
    kinds = {kind.__name__: kind for kind in (make_marian, train_pairs, translate, ctranslate2, convert)}
    if spec["kind"] != "ctranslate2":
        import torch

        torch.set_num_threads(spec.get("threads", 2))
    result = kinds[spec["kind"]](spec)
    result["peak_rss_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps(result))


if __name__ == "__main__":
    main()
