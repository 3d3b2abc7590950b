"""The PyTorch half of `compare.py`: runs one workload in a process of its own and prints one JSON object.

    python torch_peer.py '{"kind": "train", "model": "FOLDER", "batch": 8, "context": 128, "warmup": 1, "runs": 3}'

The peer is `transformers` on PyTorch: attention by `sdpa`, dropout 0, fused AdamW, gradients clipped to norm 1. `compile`
adds `torch.compile` of model and loss (its compilation and three steps are not timed); `precision: bf16` means CPU
autocast in training and bf16 weights elsewhere. `classify` trains on
sentences of natural length, each batch padded to its longest. `onnx` is ONNX Runtime in f32 on the graph of its transformer optimiser,
`tokenize` the batch call of `tokenizers`. `peak_rss_bytes` is this process's high-water mark.
"""

import json
import os
import resource
import sys
import time

START = time.perf_counter()
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")

import torch  # noqa: E402
from transformers import (  # noqa: E402
    AutoTokenizer, BertConfig, BertForSequenceClassification, BertModel, GPT2Config, GPT2LMHeadModel)
from transformers import logging as hf_logging  # noqa: E402

hf_logging.set_verbosity_error()
hf_logging.disable_progress_bar()

# The published sizes with dropout 0, and the small GPT-2 of the speed table.
NO_DROPOUT = dict(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
MODELS = {
    "gpt2": (GPT2LMHeadModel, lambda: GPT2Config(**NO_DROPOUT)),
    "gpt2-small-demo": (GPT2LMHeadModel, lambda: GPT2Config(
        n_layer=4, n_embd=128, n_head=4, vocab_size=4096, n_positions=128, bos_token_id=0, eos_token_id=0, **NO_DROPOUT)),
    "bert-base-classifier": (BertForSequenceClassification, lambda: BertConfig(
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, num_labels=2)),
    "bert-base-uncased": (BertModel, lambda: BertConfig(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)),
}


def load(spec, kind):
    dtype = torch.bfloat16 if spec.get("precision") == "bf16" and spec["kind"] not in ("train", "classify") else torch.float32
    return kind.from_pretrained(spec["model"], attn_implementation="sdpa", dtype=dtype)


def make(spec):
    """A folder of random weights that both sides load."""
    kind, config = MODELS[spec["preset"]]
    torch.manual_seed(0)
    kind(config()).save_pretrained(spec["model"])
    return {}


def timed(spec, work):
    for _ in range(spec.get("warmup", 1)):
        work()
    seconds = []
    for _ in range(spec.get("runs", 3)):
        begin = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - begin)
    return seconds


def train(spec):
    model = load(spec, GPT2LMHeadModel).train()
    ids = torch.randint(model.config.vocab_size, (spec["batch"], spec["context"]),
                        generator=torch.Generator().manual_seed(0))
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.1, fused=True)
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=spec.get("precision") == "bf16")

    def loss_of(ids):
        return model(input_ids=ids, labels=ids, use_cache=False).loss

    if spec.get("compile"):
        loss_of = torch.compile(loss_of)
        spec["warmup"] = max(3, spec.get("warmup", 0)) + 1

    def step():
        with autocast:
            loss = loss_of(ids)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        loss.item()

    seconds = timed(spec, step)
    return {"seconds": seconds, "tokens": ids.numel()}


def classify(spec):
    """Training steps on labelled sentences in file order, each batch padded to its longest row; tokenized before. The first
    batch is not timed."""
    tokenizer = AutoTokenizer.from_pretrained(spec["model"])
    model = load(spec, BertForSequenceClassification).train()
    with open(spec["lines"], encoding="utf-8") as file:
        rows = [line.rstrip("\n").rsplit("\t", 1) for line in file]
    begin = time.perf_counter()
    encoded = tokenizer([text for text, _ in rows], truncation=True, max_length=512)["input_ids"]
    tokenizing = time.perf_counter() - begin
    batches = []
    for at in range(0, len(rows), spec["batch"]):
        batch = tokenizer.pad({"input_ids": encoded[at:at + spec["batch"]]}, return_tensors="pt")
        batch["labels"] = torch.tensor([int(label) for _, label in rows[at:at + spec["batch"]]])
        batches.append(batch)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.1, fused=True)
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=spec.get("precision") == "bf16")

    def steps(batches):
        for batch in batches:
            with autocast:
                loss = model(**batch).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
            loss.item()

    steps(batches[:1])
    seconds = timed({**spec, "warmup": 0}, lambda: steps(batches))
    return {"seconds": seconds, "tokens": sum(map(len, encoded)), "padded": sum(b["input_ids"].numel() for b in batches),
            "tokenize_seconds": [tokenizing]}


def encode(spec):
    """Text in, vectors out: batches padded to their longest row, in file order or sorted by length."""
    tokenizer = AutoTokenizer.from_pretrained(spec["model"])
    model = load(spec, BertModel).eval()
    with open(spec["lines"], encoding="utf-8") as file:
        lines = [line.rstrip("\n") for line in file]
    limit = model.config.max_position_embeddings
    counts = {"tokens": 0, "padded": 0}
    tokenizing = []

    def run():
        begin = time.perf_counter()
        encoded = tokenizer(lines, truncation=True, max_length=limit)["input_ids"]
        tokenizing.append(time.perf_counter() - begin)
        order = list(range(len(lines)))
        if spec.get("order") == "sorted":
            order.sort(key=lambda i: len(encoded[i]))
        vectors = torch.empty(len(lines), model.config.hidden_size)
        counts.update(tokens=0, padded=0)
        with torch.inference_mode():
            for at in range(0, len(order), spec["batch"]):
                rows = order[at:at + spec["batch"]]
                batch = tokenizer.pad({"input_ids": [encoded[i] for i in rows]}, return_tensors="pt")
                out = model(**batch).last_hidden_state
                mask = batch["attention_mask"][..., None].to(out.dtype)
                vectors[rows] = ((out * mask).sum(1) / mask.sum(1)).float()
                counts["tokens"] += int(batch["attention_mask"].sum())
                counts["padded"] += batch["input_ids"].numel()

    seconds = timed(spec, run)
    warm = spec.get("warmup", 1)
    return {"seconds": seconds, "tokenize_seconds": tokenizing[warm:], **counts}


def onnx_make(spec):
    """The encoder as an ONNX graph, then ONNX Runtime's own transformer optimiser (fused attention, GELU and layer norm)."""
    from onnxruntime.transformers import optimizer

    model = BertModel.from_pretrained(spec["model"], attn_implementation="eager", add_pooling_layer=False).eval()

    class Encoder(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.bert = model

        def forward(self, input_ids, attention_mask):
            return self.bert(input_ids=input_ids, attention_mask=attention_mask,
                             token_type_ids=torch.zeros_like(input_ids)).last_hidden_state

    raw = spec["onnx"] + ".raw"
    ids = torch.randint(1000, 2000, (2, 16))
    axes = {0: "rows", 1: "tokens"}
    torch.onnx.export(Encoder(), (ids, torch.ones_like(ids)), raw, dynamo=False, opset_version=17,
                      input_names=["input_ids", "attention_mask"], output_names=["hidden"],
                      dynamic_axes={"input_ids": axes, "attention_mask": axes, "hidden": axes})
    better = optimizer.optimize_model(raw, model_type="bert", num_heads=model.config.num_attention_heads,
                                      hidden_size=model.config.hidden_size)
    better.save_model_to_file(spec["onnx"])
    os.remove(raw)
    return {"fused": better.get_fused_operator_statistics()}


def onnx(spec):
    """As `encode`, by ONNX Runtime in f32."""
    import numpy
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = spec.get("threads", 2)
    session = onnxruntime.InferenceSession(spec["onnx"], options, providers=["CPUExecutionProvider"])
    tokenizer = AutoTokenizer.from_pretrained(spec["model"])
    with open(spec["lines"], encoding="utf-8") as file:
        lines = [line.rstrip("\n") for line in file]
    counts = {"tokens": 0, "padded": 0}

    def run():
        encoded = tokenizer(lines, truncation=True, max_length=512)["input_ids"]
        order = list(range(len(lines)))
        if spec.get("order") == "sorted":
            order.sort(key=lambda i: len(encoded[i]))
        vectors = numpy.empty((len(lines), 768), dtype=numpy.float32)
        counts.update(tokens=0, padded=0)
        for at in range(0, len(order), spec["batch"]):
            rows = order[at:at + spec["batch"]]
            batch = tokenizer.pad({"input_ids": [encoded[i] for i in rows]}, return_tensors="np")
            mask = batch["attention_mask"].astype(numpy.int64)
            hidden = session.run(None, {"input_ids": batch["input_ids"].astype(numpy.int64), "attention_mask": mask})[0]
            weights = mask[..., None].astype(numpy.float32)
            vectors[rows] = (hidden * weights).sum(1) / weights.sum(1)
            counts["tokens"] += int(mask.sum())
            counts["padded"] += mask.size

    return {"seconds": timed(spec, run), **counts, "onnxruntime": onnxruntime.__version__}


def wordpiece(spec):
    """Writes `tokenizer.json` beside `vocab.txt`."""
    from tokenizers import BertWordPieceTokenizer

    BertWordPieceTokenizer(os.path.join(spec["model"], "vocab.txt"), lowercase=True).save(
        os.path.join(spec["model"], "tokenizer.json"))
    return {}


def tokenize(spec):
    """The batch call of `tokenizers` on the lines of a file, 20,000 a call: all at once would take many gigabytes."""
    import tokenizers

    tokenizer = tokenizers.Tokenizer.from_file(os.path.join(spec["model"], "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    with open(spec["lines"], encoding="utf-8", newline="") as file:
        lines = [line.rstrip("\n") for line in file]
    tokens, seconds = 0, 0.0
    for at in range(0, len(lines), 20_000):
        begin = time.perf_counter()
        encoded = tokenizer.encode_batch(lines[at:at + 20_000], add_special_tokens=True)
        seconds += time.perf_counter() - begin
        tokens += sum(len(e) for e in encoded)
    return {"seconds": [seconds], "tokens": tokens, "tokenizers": tokenizers.__version__}


def prompt(model, spec):
    return torch.randint(model.config.vocab_size, (spec["batch"], spec["prompt_tokens"]),
                         generator=torch.Generator().manual_seed(1))


def decode(spec):
    """Greedy `generate`; the time counted runs from the first new token to the last, the prompt's own apart."""
    model = load(spec, GPT2LMHeadModel).eval()
    ids = prompt(model, spec)
    stamps = []

    def stamp(_, scores):
        stamps.append(time.perf_counter())
        return scores

    def run():
        stamps.clear()
        begin = time.perf_counter()
        model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=spec["new_tokens"],
                       min_new_tokens=spec["new_tokens"], eos_token_id=None, pad_token_id=0,
                       logits_processor=[stamp])
        return stamps[0] - begin, stamps[-1] - stamps[0], time.perf_counter() - begin

    results = []
    for i in range(spec.get("warmup", 1) + spec.get("runs", 3)):
        result = run()
        if i >= spec.get("warmup", 1):
            results.append(result)
    steps = spec["new_tokens"] - 1
    return {"seconds": [r[1] for r in results], "tokens": spec["batch"] * steps,
            "prompt_seconds": [r[0] for r in results], "total_seconds": [r[2] for r in results]}


def prefill(spec):
    """A prompt with the cache filled and the logits of its last place."""
    model = load(spec, GPT2LMHeadModel).eval()
    ids = prompt(model, spec)

    def run():
        with torch.inference_mode():
            model(input_ids=ids, use_cache=True, logits_to_keep=1).logits.argmax(-1)

    return {"seconds": timed(spec, run), "tokens": ids.numel()}


def start(spec):
    """Loads a checkpoint and generates one token; the caller times the whole process."""
    model = load(spec, GPT2LMHeadModel).eval()
    ids = torch.tensor([[int(i) for i in spec["ids"].split()]])
    with torch.inference_mode():
        out = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=1,
                             pad_token_id=0)
    return {"ids": out[0, ids.shape[1]:].tolist(), "seconds": [time.perf_counter() - START]}


def main():
    spec = json.loads(sys.argv[1])
    torch.set_num_threads(spec.get("threads", 2))
    kinds = [make, train, classify, encode, decode, prefill, start, onnx_make, onnx, wordpiece, tokenize]
    result = {kind.__name__: kind for kind in kinds}[spec["kind"]](spec)
    result["peak_rss_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    result["torch"] = torch.__version__
    print(json.dumps(result))


if __name__ == "__main__":
    main()
