"""Makes the fixtures of the parity tests from `transformers` on PyTorch.

    python -m venv env && env/bin/pip install -r requirements.txt
    env/bin/python generate.py            # rewrites every folder beside this file
    env/bin/python generate.py --check    # makes them again elsewhere and compares the bytes

Every checkpoint is tiny and random, drawn from a seeded generator; biases and norm weights are random as well, so that
none sits at a value (0 or 1) that would hide a mistake. Sizes are odd on purpose: heads 12 wide, a vocabulary of 101.

A folder holds a checkpoint and

- `batch.json`: the input of `genus forward`: rows of unequal length padded at the right, random ids at padded places;
- `expected.safetensors`: the reference's outputs with zeros at padded places, `hidden_states.<i>`, the loss, and
  `grad.<name in the checkpoint>` for every tensor that the task uses (a tied tensor has the total under every name);
- `batch-left.json`, `expected-left.safetensors` (two folders): the same rows padded at the left. Positions count each
  row's real tokens from 0, so the gradients are those of `expected.safetensors`;
- `steps.json`, `steps.safetensors` (two folders): ten AdamW steps with clipping and warm-up, and the weights after them;
- `generation.json` (one folder): greedy continuations, one prompt at a time.

`tolerances.json` says how far this reference (float32) is from the same computation in float64: for each tensor
`max_abs`, the largest deviation, and `rel`, that deviation over the tensor's largest magnitude. A test that compares
against a float32 reference cannot ask for less than that. One kind of tensor stands out: a key's bias moves every score
of a row alike, so its true gradient is zero, what is computed is rounding alone, and Adam, which divides by the
gradient's size, turns that into steps of arbitrary sign (the outputs do not notice). Where GPT-2 packs the three
biases, the key's part is the entry `...[key]`. `counts.json` and `published/*.txt` come from models of the
published sizes on the meta device: parameter counts, names and shapes.
"""

import argparse
import filecmp
import json
import math
import shutil
import sys
import tempfile
import types
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForNextSentencePrediction,
    BertForPreTraining,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
    DistilBertConfig,
    DistilBertForMaskedLM,
    DistilBertForSequenceClassification,
    DistilBertForTokenClassification,
    DistilBertModel,
    ElectraConfig,
    ElectraForMaskedLM,
    ElectraForPreTraining,
    ElectraForSequenceClassification,
    ElectraForTokenClassification,
    ElectraModel,
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2ForTokenClassification,
    GPT2LMHeadModel,
    GPT2Model,
    GPTNeoConfig,
    GPTNeoForCausalLM,
    GPTNeoForSequenceClassification,
    GPTNeoModel,
    MarianConfig,
    MarianModel,
    MarianMTModel,
    OpenAIGPTConfig,
    OpenAIGPTForSequenceClassification,
    OpenAIGPTLMHeadModel,
    OpenAIGPTModel,
    RobertaConfig,
    RobertaForMaskedLM,
    RobertaForSequenceClassification,
    RobertaForTokenClassification,
    RobertaModel,
)
from transformers import logging as hf_logging
from transformers.models.gpt_neo.modeling_gpt_neo import GPTNeoSelfAttention

hf_logging.set_verbosity_error()
hf_logging.disable_progress_bar()
torch.set_num_threads(1)
torch.use_deterministic_algorithms(True)

VOCAB, POSITIONS = 101, 40

CAUSAL = (GPT2LMHeadModel, OpenAIGPTLMHeadModel, GPTNeoForCausalLM)
MASKED = (BertForMaskedLM, RobertaForMaskedLM, DistilBertForMaskedLM, ElectraForMaskedLM)
CLASSES = (BertForSequenceClassification, GPT2ForSequenceClassification, OpenAIGPTForSequenceClassification,
           GPTNeoForSequenceClassification, RobertaForSequenceClassification, DistilBertForSequenceClassification,
           ElectraForSequenceClassification)
TAGS = (BertForTokenClassification, RobertaForTokenClassification, DistilBertForTokenClassification,
        ElectraForTokenClassification, GPT2ForTokenClassification)
DECODERS = ("gpt2", "openai-gpt", "gpt_neo")
PADDING_OF_MARIAN = 100  # the last id, so that others can be drawn below it
# To the reference, this id is padding even where the mask says that it is real: its row of the table gets no gradient.
PADDING = {"bert": 0, "roberta": 1, "distilbert": 0, "electra": 0}


# ---------------------------------------------------------------- models


def gpt2_config(**changes):
    fields = dict(vocab_size=VOCAB, n_positions=POSITIONS, n_embd=36, n_head=3, n_layer=3, n_inner=30, resid_pdrop=0.0,
                  embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=None, eos_token_id=None, attn_implementation="eager")
    return GPT2Config(**{**fields, **changes})


def bert_config(**changes):
    fields = dict(vocab_size=VOCAB, max_position_embeddings=POSITIONS, hidden_size=36, num_attention_heads=3,
                  num_hidden_layers=2, intermediate_size=50, hidden_dropout_prob=0.0,
                  attention_probs_dropout_prob=0.0, attn_implementation="eager")
    return BertConfig(**{**fields, **changes})


def gpt_config(**changes):
    fields = dict(vocab_size=VOCAB, n_positions=POSITIONS, n_embd=36, n_head=3, n_layer=3, resid_pdrop=0.0,
                  embd_pdrop=0.0, attn_pdrop=0.0, attn_implementation="eager")
    return OpenAIGPTConfig(**{**fields, **changes})


def neo_config(**changes):
    """Two of three layers see a band of five tokens."""
    fields = dict(vocab_size=VOCAB, max_position_embeddings=POSITIONS, hidden_size=36, num_heads=3, num_layers=3,
                  attention_types=[[["global", "local"], 1], [["local"], 1]], window_size=5, intermediate_size=30,
                  bos_token_id=None, eos_token_id=None, attn_implementation="eager")
    return GPTNeoConfig(**{**fields, **changes})


def roberta_config(**changes):
    """Positions are counted from 2, so the table has two rows more."""
    fields = dict(vocab_size=VOCAB, max_position_embeddings=POSITIONS + 2, hidden_size=24, num_attention_heads=2,
                  num_hidden_layers=2, intermediate_size=35, type_vocab_size=1, layer_norm_eps=1e-5,
                  hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, attn_implementation="eager")
    return RobertaConfig(**{**fields, **changes})


def distilbert_config(**changes):
    fields = dict(vocab_size=VOCAB, max_position_embeddings=POSITIONS, dim=24, n_heads=2, n_layers=2, hidden_dim=35,
                  dropout=0.0, attention_dropout=0.0, attn_implementation="eager")
    return DistilBertConfig(**{**fields, **changes})


def electra_config(**changes):
    """Tables are narrower than the stream."""
    fields = dict(vocab_size=VOCAB, max_position_embeddings=POSITIONS, embedding_size=17, hidden_size=24,
                  num_attention_heads=2, num_hidden_layers=2, intermediate_size=35, hidden_dropout_prob=0.0,
                  attention_probs_dropout_prob=0.0, attn_implementation="eager")
    return ElectraConfig(**{**fields, **changes})


def marian_config(**changes):
    """Encoder and decoder differ in all that may differ. No target begins with the padding token, whose row of the table the
    reference would leave without a gradient."""
    fields = dict(vocab_size=VOCAB, max_position_embeddings=POSITIONS, d_model=24, encoder_layers=1, encoder_ffn_dim=35,
                  encoder_attention_heads=2, decoder_layers=2, decoder_ffn_dim=30, decoder_attention_heads=3,
                  activation_function="swish", dropout=0.0, attention_dropout=0.0, activation_dropout=0.0,
                  scale_embedding=True, decoder_start_token_id=3, pad_token_id=100, eos_token_id=0,
                  forced_eos_token_id=None, attn_implementation="eager")
    return MarianConfig(**{**fields, **changes})


def build(kind, config, seed):
    """A model whose every parameter is drawn from `seed`, at magnitudes that make attention and losses far from uniform."""
    model = kind(config).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.endswith("embed_positions.weight") and isinstance(model, (MarianModel, MarianMTModel)):
                continue  # sines and cosines
            noise = torch.randn(p.shape, generator=generator)
            if p.ndim == 2:
                p.copy_(noise * (0.4 if is_embedding(name) else 0.2))
            elif is_norm(name) and name.endswith("weight"):
                p.copy_(1.0 + 0.2 * noise)
            else:
                p.copy_(0.1 * noise)
    return model


def is_embedding(name):
    return any(part in name for part in ("wte", "wpe", "embed"))


def is_norm(name):
    return "ln_" in name or "LayerNorm" in name or "layer_norm" in name


# ---------------------------------------------------------------- batches


def make_batch(seed, lengths, model_type, heads, keep_labels=0.8):
    """Rows of unequal length padded at the right; padded places hold random ids that must have no effect."""
    g = torch.Generator().manual_seed(seed)
    rows, width = len(lengths), max(lengths)
    least = PADDING.get(model_type, -1) + 1
    batch = {
        "input_ids": torch.randint(least, VOCAB, (rows, width), generator=g).tolist(),
        "attention_mask": [[1] * n + [0] * (width - n) for n in lengths],
    }
    if model_type in ("bert", "electra"):
        # the second segment starts somewhere inside the row; padded places hold 0 and 1 alike
        starts = [int(torch.randint(1, n + 1, (1,), generator=g)) for n in lengths]
        batch["token_type_ids"] = [[int(i >= s) for i in range(width)] for s in starts]
    if "labels" in heads:
        drawn = torch.randint(VOCAB, (rows, width), generator=g).tolist()
        kept = (torch.rand((rows, width), generator=g) < keep_labels).tolist()
        # The first token of a row has no label: under left padding the reference would let a padded place predict it.
        first = 1 if model_type in DECODERS else 0
        source = batch["input_ids"] if model_type in DECODERS else drawn
        batch["labels"] = [
            [source[r][i] if first <= i < n and kept[r][i] else -100 for i in range(width)]
            for r, n in enumerate(lengths)
        ]
    if "next_sentence_label" in heads:
        batch["next_sentence_label"] = torch.randint(2, (rows,), generator=g).tolist()
    return batch


def sequence_batch(seed, lengths, model_type, labels, pad=None):
    """A batch with a label a row. The reference's GPT-2 looks for its last token by id alone, so padded places hold `pad`."""
    batch = make_batch(seed, lengths, model_type, [])
    if pad is not None:
        batch["input_ids"] = [[id if real else pad for id, real in zip(ids, mask)]
                              for ids, mask in zip(batch["input_ids"], batch["attention_mask"])]
    return {**batch, "labels": labels}


def token_batch(seed, lengths, model_type, classes, keep_labels=0.7):
    """A batch with a class for most tokens; all of them have one with `keep_labels` 1."""
    batch = make_batch(seed, lengths, model_type, [])
    g = torch.Generator().manual_seed(seed + 2000)
    shape = (len(lengths), max(lengths))
    labels = torch.randint(classes, shape, generator=g)
    mask = torch.tensor(batch["attention_mask"])
    labels[(mask == 0) | (torch.rand(shape, generator=g) > keep_labels)] = -100
    return {**batch, "labels": labels.tolist()}


def translation_batch(seed, lengths, targets, shifted=False, keep_labels=0.8):
    """Sources as in `make_batch`, targets all of one length. `shifted`: what the decoder reads follows from the labels."""
    batch = make_batch(seed, lengths, "marian", [])
    g = torch.Generator().manual_seed(seed + 1000)
    shape = (len(lengths), targets)
    labels = torch.randint(PADDING_OF_MARIAN, shape, generator=g)
    if not shifted:
        batch["decoder_input_ids"] = torch.randint(PADDING_OF_MARIAN, shape, generator=g).tolist()
        labels[torch.rand(shape, generator=g) > keep_labels] = -100
    return {**batch, "labels": labels.tolist()}


def pad_left(batch):
    """The same rows, padded at the left."""
    lengths = [sum(row) for row in batch["attention_mask"]]
    out = {}
    for name, rows in batch.items():
        padded = isinstance(rows[0], list) and len(rows[0]) == len(batch["attention_mask"][0])
        out[name] = [r[n:] + r[:n] for r, n in zip(rows, lengths)] if padded else rows
    return out


def positions(mask):
    """Positions count a row's real tokens from 0."""
    return (mask.cumsum(-1) - 1).clamp(min=0)


# ---------------------------------------------------------------- the reference


def cross_entropy(logits, labels):
    return torch.nn.functional.cross_entropy(logits.reshape(-1, logits.shape[-1]), labels.reshape(-1), ignore_index=-100)


def run(model, batch, hidden=False):
    """Outputs and loss. The loss is written out because the reference's own casts logits to float32, also in float64;
    where the model computes one, it is checked against it."""
    t = {name: torch.tensor(rows) for name, rows in batch.items()}
    mask = t["attention_mask"]
    kind = model.config.model_type
    if kind == "marian":
        return run_translation(model, t, hidden)
    first = 2 if kind == "roberta" else 0
    inputs = dict(input_ids=t["input_ids"], attention_mask=mask, position_ids=positions(mask) + first)
    if "token_type_ids" in t:
        inputs["token_type_ids"] = t["token_type_ids"]
    labels, pairs = t.get("labels"), t.get("next_sentence_label")
    loss = None
    extra = {}
    if isinstance(model, BertForNextSentencePrediction):
        extra = dict(labels=pairs) if pairs is not None else {}
    elif isinstance(model, BertForPreTraining):
        extra = dict(labels=labels, next_sentence_label=pairs) if labels is not None else {}
    elif labels is not None:
        extra = dict(labels=labels)
    if isinstance(model, ElectraForPreTraining) and model.dtype == torch.float64:
        extra = {}  # the reference's own loss takes its targets in float32
    cache = dict(use_cache=False) if kind in ("gpt2", "gpt_neo") else {}
    classifies = isinstance(model, CLASSES)
    if classifies and labels is not None and labels.is_floating_point():
        extra = dict(labels=labels.to(model.dtype))
    problem = model.config.problem_type if classifies else None
    o = model(**inputs, **extra, **cache, output_hidden_states=hidden, return_dict=True)
    if classifies:
        found, model.config.problem_type = model.config.problem_type, problem  # the reference writes its guess there
        if labels is not None:
            loss = class_loss(found, o.logits, labels)
    if isinstance(model, CAUSAL) and labels is not None:
        loss = cross_entropy(o.logits[:, :-1], labels[:, 1:])
    elif isinstance(model, ElectraForPreTraining) and labels is not None:
        real = mask == 1
        loss = torch.nn.functional.binary_cross_entropy_with_logits(o.logits[real], labels[real].to(o.logits.dtype))
    elif isinstance(model, MASKED + TAGS) and labels is not None:
        loss = cross_entropy(o.logits, labels)
    elif isinstance(model, BertForNextSentencePrediction) and pairs is not None:
        loss = cross_entropy(o.logits, pairs)
    elif isinstance(model, BertForPreTraining) and labels is not None:
        loss = cross_entropy(o.prediction_logits, labels) + cross_entropy(o.seq_relationship_logits, pairs)
    out = {}
    if loss is not None:
        assert "labels" not in extra or abs(loss.item() - o.loss.item()) < 1e-5, (loss, o.loss)
        out["loss"] = loss
    if isinstance(model, ElectraForPreTraining):
        o.logits = o.logits * mask
    for name in ("logits", "prediction_logits", "seq_relationship_logits", "last_hidden_state", "pooler_output"):
        value = getattr(o, name, None)
        if value is not None:
            out[name] = zero_padding(value, mask)
    if hidden:
        for i, value in enumerate(o.hidden_states):
            out[f"hidden_states.{i}"] = zero_padding(value, mask)
    return out, loss


def run_translation(model, t, hidden):
    """A model that reads one sequence and writes another. All places of what it writes are real."""
    mask, labels = t["attention_mask"], t.get("labels")
    inputs = dict(input_ids=t["input_ids"], attention_mask=mask, decoder_input_ids=t.get("decoder_input_ids"))
    if labels is not None:
        inputs["labels"] = labels
    o = model(**inputs, use_cache=False, output_hidden_states=hidden, return_dict=True)
    out, loss = {}, None
    if labels is not None:
        out["loss"] = loss = cross_entropy(o.logits, labels)
        assert abs(loss.item() - o.loss.item()) < 1e-5, (loss, o.loss)
    out["encoder_last_hidden_state"] = zero_padding(o.encoder_last_hidden_state, mask)
    for name in ("logits", "last_hidden_state"):
        if getattr(o, name, None) is not None:
            out[name] = getattr(o, name)
    if hidden:
        for i, value in enumerate(o.encoder_hidden_states):
            out[f"encoder_hidden_states.{i}"] = zero_padding(value, mask)
        for i, value in enumerate(o.decoder_hidden_states):
            out[f"decoder_hidden_states.{i}"] = value
    return out, loss


def class_loss(problem, logits, labels):
    if problem == "single_label_classification":
        return cross_entropy(logits, labels)
    if problem == "multi_label_classification":
        return torch.nn.functional.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype))
    return torch.nn.functional.mse_loss(logits.reshape(labels.shape), labels.to(logits.dtype))


def zero_padding(value, mask):
    return value * mask[..., None] if value.ndim == 3 else value


def outputs_and_gradients(model, batch, names, hidden, gradients=True):
    """`names` maps a checkpoint's name to the model's parameter. Without labels there is no loss and no gradient."""
    model.zero_grad()
    out, loss = run(model, batch, hidden)
    if gradients and loss is not None:
        loss.backward()
        parameters = dict(model.named_parameters(remove_duplicate=False))
        for name, inside in names.items():
            # A buffer is no parameter.
            if inside in parameters and parameters[inside].grad is not None:
                out[f"grad.{name}"] = parameters[inside].grad
    return {name: value.detach().clone().contiguous() for name, value in out.items()}


def deviations(got, exact):
    """How far float32 is from float64, tensor by tensor; the key third of a packed bias apart from the rest."""
    got, exact = split_keys(got), split_keys(exact)
    report = {}
    for name, value in got.items():
        e = exact[name].double()
        diff = (value.double() - e).abs().max().item()
        scale = e.abs().max().item()
        report[name] = {"max_abs": significant(diff), "rel": significant(diff / scale if scale > 0 else 0.0)}
    return report


def split_keys(tensors):
    out = {}
    for name, value in tensors.items():
        if name.endswith("attn.c_attn.bias"):
            q, k, v = value.chunk(3)
            out[name], out[name + "[key]"] = torch.cat([q, v]), k
        else:
            out[name] = value
    return out


def significant(x):
    return float(f"{x:.3g}")


def neo_attention(self, query, key, value, attention_mask=None):
    """GPT-Neo's attention in the type of its inputs: the reference's own takes scores in float32, also in float64."""
    scores = query @ key.transpose(-1, -2)
    n, m = scores.shape[-2:]
    seen = self.bias[:, :, m - n:m, :m]
    scores = torch.where(seen, scores, torch.finfo(scores.dtype).min)
    weights = (scores if attention_mask is None else scores + attention_mask).softmax(-1)
    return weights @ value, weights


def clone(model, dtype):
    other = type(model)(model.config).eval()
    if dtype == torch.float64 and model.config.model_type == "gpt_neo":
        for module in other.modules():
            if isinstance(module, GPTNeoSelfAttention):
                module._attn = types.MethodType(neo_attention, module)
    other.load_state_dict(model.state_dict())
    return other.to(dtype)


# ---------------------------------------------------------------- writing


def dump(path, value):
    """JSON with one line an entry of the top level: small, and readable in a diff."""
    lines = [f"  {json.dumps(key)}: {json.dumps(item)}" for key, item in value.items()]
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n")


def saved_names(folder):
    names = []
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as f:
            names += list(f.keys())
    return names


class Writer:
    def __init__(self, root):
        self.root, self.tolerances = root, {}

    def folder(self, name):
        path = self.root / name
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir(parents=True)
        return path

    def case(self, name, model, batch, save=None, rename=None, hidden=True, gradients=True, left=False):
        """Saves the checkpoint (by `save`, or as the reference does) with batch, expected outputs and deviations.
        `rename` maps a name of the checkpoint to the model's own."""
        path = self.folder(name)
        if save is None:
            model.save_pretrained(path)
            names = saved_names(path)
        else:
            names = save(path)
        inside = {n: rename(n) if rename else n for n in names}
        inside = {n: m for n, m in inside.items() if m is not None}
        self.compare(path, name, "", model, batch, inside, hidden, gradients)
        if left:
            self.compare(path, name, "-left", model, pad_left(batch), inside, hidden=False, gradients=False)
        return path

    def compare(self, path, name, suffix, model, batch, inside, hidden, gradients):
        expected = outputs_and_gradients(model, batch, inside, hidden, gradients)
        exact = outputs_and_gradients(clone(model, torch.float64), batch, inside, hidden, gradients)
        dump(path / f"batch{suffix}.json", batch)
        save_file(expected, path / f"expected{suffix}.safetensors")
        self.tolerances[name + suffix] = deviations(expected, exact)

    def steps(self, path, name, model, batches, settings):
        """Ten steps of AdamW; the lr of each step is listed, so that nothing depends on how a schedule is written."""
        records, weights = train(clone(model, torch.float32), batches, settings)
        exact_records, exact_weights = train(clone(model, torch.float64), batches, settings)
        norms = [r["grad_norm"] for r in records]
        clipped = [n > settings["max_norm"] for n in norms]
        assert any(clipped), norms
        print(f"{name}: {sum(clipped)} of {len(norms)} steps clipped")
        kept = [n for n in saved_names_of(path) if n in weights]
        weights = {n: weights[n].contiguous() for n in kept}
        dump(path / "steps.json", {
            **settings,
            "losses": [r["loss"] for r in records],
            "grad_norms": norms,
            "no_decay": sorted(n for n in kept if not decays(n, weights[n])),
            "batches": batches,
        })
        save_file(weights, path / "steps.safetensors")
        report = deviations(weights, exact_weights)
        for key in ("loss", "grad_norm"):
            off = [abs(a[key] - b[key]) for a, b in zip(records, exact_records)]
            report[key] = {"max_abs": significant(max(off)),
                           "rel": significant(max(o / abs(b[key]) for o, b in zip(off, exact_records)))}
        self.tolerances[name + "-steps"] = report


def saved_names_of(path):
    with safe_open(path / "model.safetensors", "pt") as f:
        return list(f.keys())


def decays(name, tensor):
    return tensor.ndim >= 2


def train(model, batches, settings):
    groups = [{"params": [], "weight_decay": settings["weight_decay"]}, {"params": [], "weight_decay": 0.0}]
    for name, p in model.named_parameters():
        groups[0 if decays(name, p) else 1]["params"].append(p)
    optimiser = torch.optim.AdamW(groups, lr=0.0, betas=tuple(settings["betas"]), eps=settings["eps"])
    records = []
    for batch, lr in zip(batches, settings["lr"], strict=True):
        for group in optimiser.param_groups:
            group["lr"] = lr
        optimiser.zero_grad()
        _, loss = run(model, batch)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), settings["max_norm"])
        optimiser.step()
        records.append({"loss": loss.item(), "grad_norm": norm.item()})
    return records, {n: t.detach() for n, t in model.state_dict().items()}


def schedule(peak, warmup, steps, end=None):
    """Linear warm-up (step 1 has peak / warmup), then constant, or linear towards 0 at step `end`."""
    lr = []
    for t in range(1, steps + 1):
        if t <= warmup:
            lr.append(peak * t / warmup)
        else:
            lr.append(peak if end is None else peak * (end - t) / (end - warmup))
    return lr


# ---------------------------------------------------------------- generation


def greedy(model, prompt, count, eos=None):
    """Ids and the smallest lead of a chosen id over the second best, which says how safe the comparison is."""
    ids, lead = list(prompt), math.inf
    for _ in range(count):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids])).logits[0, -1]
        best = logits.topk(2)
        lead = min(lead, (best.values[0] - best.values[1]).item())
        ids.append(int(best.indices[0]))
        if ids[-1] == eos:
            break
    return ids[len(prompt):], lead


def generation(model, seed):
    g = torch.Generator().manual_seed(seed)
    counts = [(1, 20), (5, 14), (9, 12), (20, 20), (3, 17)]
    prompts = [torch.randint(VOCAB, (n,), generator=g).tolist() for n, _ in counts]
    runs, least = [], math.inf
    for prompt, (_, new) in zip(prompts, counts):
        ids, lead = greedy(model, prompt, new)
        library = model.generate(torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
                                 do_sample=False, max_new_tokens=new, eos_token_id=None, pad_token_id=0)
        library = library[0, len(prompt):].tolist()
        assert ids == library, (ids, library)
        runs.append({"prompt": prompt, "max_new_tokens": new, "ids": ids})
        least = min(least, lead)
    # The end token: one that two runs produce after a few others, and some run does not produce.
    everything = [r["ids"] for r in runs]
    late = lambda token: sum(token in ids and ids.index(token) >= 3 for ids in everything)
    eos = next(t for t in range(VOCAB) if late(t) >= 2 and any(t not in ids for ids in everything))
    stopped = []
    for r in runs:
        ids, _ = greedy(model, r["prompt"], r["max_new_tokens"], eos)
        stopped.append({**r, "ids": ids})
    assert least > 1e-3, f"a choice hangs on {least}: take another seed"
    return eos, {"eos_token_id": eos, "smallest_lead": significant(least), "ignoring_eos": runs, "until_eos": stopped}


# ---------------------------------------------------------------- checkpoints in other forms


def save_config(model, path, architecture):
    config = model.config.to_diff_dict()
    config["architectures"] = [architecture]
    config["model_type"] = model.config.model_type
    (path / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def save_old_bert(model):
    """As the first PyTorch release of BERT: `gamma` and `beta`, position ids as a buffer, tied tensors twice (sharing
    their storage), in a pickle."""

    def save(path):
        state = {}
        for name, value in model.state_dict().items():
            if name == "cls.predictions.decoder.bias":
                continue
            state[old_bert_name(name)] = value
        state["bert.embeddings.position_ids"] = torch.arange(POSITIONS)[None]
        state["cls.predictions.decoder.weight"] = model.get_input_embeddings().weight.data
        torch.save(state, path / "pytorch_model.bin")
        save_config(model, path, "BertForPreTraining")
        return list(state)

    return save


def old_bert_name(name):
    return name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")


def new_bert_name(name):
    if name.endswith("position_ids"):
        return None
    return name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")


def save_old_gpt2(model):
    """As the published `gpt2`: names without the prefix, the causal mask stored as a buffer, in a pickle."""

    def save(path):
        state = {}
        for name, value in model.transformer.state_dict().items():
            state[name] = value
            if name.endswith("ln_1.bias"):
                layer = name.removesuffix("ln_1.bias")
                state[layer + "attn.bias"] = torch.ones(POSITIONS, POSITIONS).tril()[None, None]
                state[layer + "attn.masked_bias"] = torch.tensor(-1e4)
        torch.save(state, path / "pytorch_model.bin")
        save_config(model, path, "GPT2LMHeadModel")
        return list(state)

    return save


# ---------------------------------------------------------------- all of it


def generate(root):
    w = Writer(root)
    small_gpt2 = dict(n_embd=24, n_head=2)
    small_bert = dict(hidden_size=24, num_attention_heads=2, intermediate_size=35)

    # GPT-2
    model = build(GPT2LMHeadModel, gpt2_config(), 7)  # a seed whose greedy texts vary
    eos, texts = generation(model, 5)
    model.config.eos_token_id = eos
    model.generation_config.eos_token_id = eos
    path = w.case("gpt2-causal-lm", model, make_batch(2, [10, 1, 7, 4], "gpt2", ["labels"]), left=True)
    dump(path / "generation.json", texts)
    g = torch.Generator().manual_seed(3)
    lengths = lambda: torch.randint(2, 8, (3,), generator=g).tolist()
    batches = [make_batch(100 + i, lengths(), "gpt2", ["labels"], 1.0) for i in range(10)]
    w.steps(path, "gpt2-causal-lm", model, batches, dict(
        lr=schedule(2e-2, 4, 10), betas=[0.9, 0.95], eps=1e-8, weight_decay=0.1, max_norm=GPT2_MAX_NORM,
        schedule="linear warm-up over 4 steps, then constant"))

    model = build(GPT2Model, gpt2_config(n_layer=1, n_inner=None, **small_gpt2), 11)
    w.case("gpt2-base", model, make_batch(12, [3, 9, 6], "gpt2", []))

    one = dict(n_layer=1, **small_gpt2)
    batch = make_batch(22, [5, 8], "gpt2", ["labels"])
    only = dict(hidden=False, gradients=False)
    model = build(GPT2LMHeadModel, gpt2_config(**one), 21)
    w.case("gpt2-bin", model, batch, save=save_old_gpt2(model), rename=lambda n: None, **only)
    model = build(GPT2LMHeadModel, gpt2_config(**one), 23)
    sharded = lambda path: model.save_pretrained(path, max_shard_size="12KB") or []
    path = w.case("gpt2-sharded", model, batch, save=sharded, **only)
    assert 2 <= len(list(path.glob("model-*.safetensors"))) <= 4, sorted(path.iterdir())
    for name, dtype, kind, config, b in [
        ("gpt2-bf16", torch.bfloat16, GPT2LMHeadModel, gpt2_config(**one), batch),
        ("bert-f16", torch.float16, BertForMaskedLM, bert_config(num_hidden_layers=1, **small_bert),
         make_batch(24, [8, 5], "bert", ["labels"])),
    ]:
        rounded = build(kind, config, 25).to(dtype)
        save = lambda path: rounded.save_pretrained(path) or []
        w.case(name, clone(rounded, torch.float32), b, save=save, **only)

    # BERT
    model = build(BertModel, bert_config(num_hidden_layers=1, **small_bert), 31)
    w.case("bert-base", model, make_batch(32, [4, 9, 6], "bert", []))
    model = build(BertForMaskedLM, bert_config(**small_bert), 33)
    w.case("bert-masked-lm", model, make_batch(34, [4, 9, 1, 6], "bert", ["labels"], 0.5), left=True)
    model = build(BertForNextSentencePrediction, bert_config(num_hidden_layers=1, **small_bert), 35)
    w.case("bert-next-sentence", model, make_batch(36, [9, 2, 5], "bert", ["next_sentence_label"]),
           hidden=False)
    both = ["labels", "next_sentence_label"]
    model = build(BertForPreTraining, bert_config(), 37)
    path = w.case("bert-pretraining", model, make_batch(38, [10, 3, 7], "bert", both, 0.4))
    batches = [make_batch(200 + i, lengths(), "bert", both, 0.7) for i in range(10)]
    w.steps(path, "bert-pretraining", model, batches, dict(
        lr=schedule(1e-2, 4, 10, end=12), betas=[0.9, 0.999], eps=1e-8, weight_decay=0.1, max_norm=BERT_MAX_NORM,
        schedule="linear warm-up over 4 steps, then linear towards 0 at step 12"))
    model = build(BertForPreTraining, bert_config(num_hidden_layers=1, **small_bert), 39)
    w.case("bert-old-names", model, make_batch(40, [6, 3], "bert", both, 0.6), save=save_old_bert(model),
           rename=new_bert_name, hidden=False)

    classification(w, small_gpt2, small_bert)
    relatives(w)
    translation(w)
    tagging(w, small_gpt2, small_bert)

    (root / "tolerances.json").write_text(tolerances_text(w.tolerances))
    published(root)


def translation(w):
    """The Transformer in Marian's form."""
    model = build(MarianMTModel, marian_config(), 71)
    model.final_logits_bias.copy_(torch.randn(1, VOCAB, generator=torch.Generator().manual_seed(72)))
    path = w.case("marian-seq2seq", model, translation_batch(73, [9, 4, 1, 12], 7))
    dump(path / "translation.json", searches(model, 74))
    g = torch.Generator().manual_seed(75)
    lengths = lambda: torch.randint(2, 8, (3,), generator=g).tolist()
    batches = [translation_batch(300 + i, lengths(), 5, keep_labels=1.0) for i in range(10)]
    w.steps(path, "marian-seq2seq", model, batches, dict(
        lr=schedule(1e-2, 4, 10), betas=[0.9, 0.98], eps=1e-9, weight_decay=0.1, max_norm=MARIAN_MAX_NORM,
        schedule="linear warm-up over 4 steps, then constant"))
    one = dict(decoder_layers=1, scale_embedding=False)
    model = build(MarianMTModel, marian_config(**one, activation_function="gelu"), 76)
    w.case("marian-shifted", model, translation_batch(77, [5, 8], 6, shifted=True), hidden=False)
    model = build(MarianModel, marian_config(**one, activation_function="relu"), 78)
    batch = translation_batch(79, [3, 7, 6], 4)
    del batch["labels"]
    w.case("marian-base", model, batch)


def searches(model, seed):
    """Greedy translations and the best of four beams, one source at a time, with the library's own search."""
    g = torch.Generator().manual_seed(seed)
    sources = [torch.randint(VOCAB - 1, (n,), generator=g).tolist() for n in (3, 11, 6, 1, 8, 5)]
    options = dict(do_sample=False, max_new_tokens=14, pad_token_id=PADDING_OF_MARIAN)
    # The end token: one that some greedy translations come to late, so that beams end at several lengths.
    free = [model.generate(torch.tensor([s]), attention_mask=torch.ones(1, len(s), dtype=torch.long),
                           eos_token_id=None, **options)[0, 1:].tolist() for s in sources]
    late = lambda token: sum(token in ids and ids.index(token) >= 3 for ids in free)
    eos = options["eos_token_id"] = max(range(PADDING_OF_MARIAN), key=late)
    assert late(eos) >= 2, free
    runs = []
    for source in sources:
        ids, mask = torch.tensor([source]), torch.ones(1, len(source), dtype=torch.long)
        found = {"source": source}
        found["greedy"] = model.generate(ids, attention_mask=mask, **options)[0, 1:].tolist()
        for penalty in (0.6, 1.0):
            beams = model.generate(ids, attention_mask=mask, num_beams=4, num_return_sequences=4, length_penalty=penalty,
                                   early_stopping=False, return_dict_in_generate=True, output_scores=True, **options)
            texts = [[i for i in row[1:].tolist() if i != PADDING_OF_MARIAN] for row in beams.sequences]
            found[f"beams {penalty}"] = texts
            found[f"scores {penalty}"] = [significant(x) for x in beams.sequences_scores.tolist()]
        runs.append(found)
    lengths = {len(ids) for run in runs for ids in run["beams 0.6"]}
    assert len(lengths) >= 4, f"beams of the lengths {lengths} alone: take another seed"
    return {"max_new_tokens": 14, "eos_token_id": eos, "runs": runs}


def classification(w, small_gpt2, small_bert):
    """A class, several, or numbers for each sequence."""
    one = dict(num_hidden_layers=1, **small_bert)
    names = dict(id2label={0: "bad", 1: "so-so", 2: "good"}, label2id={"bad": 0, "so-so": 1, "good": 2})
    model = build(BertForSequenceClassification, bert_config(**small_bert, **names, classifier_dropout=0.2), 41)
    w.case("bert-classes", model, sequence_batch(42, [9, 1, 5, 12], "bert", [2, 0, -100, 1]))
    model = build(BertForSequenceClassification, bert_config(num_labels=1, **one), 43)
    w.case("bert-number", model, sequence_batch(44, [3, 8, 6], "bert", [0.5, -1.25, 2.0]))
    several = dict(num_labels=5, problem_type="multi_label_classification")
    model = build(BertForSequenceClassification, bert_config(**several, **one), 45)
    applies = [[1.0, 0.0, 0.0, 1.0, 0.0], [0.0, 0.0, 0.0, 0.0, 0.0], [0.0, 0.25, 1.0, 1.0, 1.0]]
    w.case("bert-several-classes", model, sequence_batch(46, [7, 2, 4], "bert", applies))
    # Id 17 is padding; the third row ends in it, also where it is real: the token before it is the last.
    model = build(GPT2ForSequenceClassification, gpt2_config(n_layer=2, num_labels=3, pad_token_id=17, **small_gpt2), 47)
    batch = sequence_batch(48, [10, 1, 6, 4], "gpt2", [1, 2, 0, 1], pad=17)
    batch["input_ids"][2][4:6] = [17, 17]
    w.case("gpt2-classes", model, batch, left=True)
    numbers = dict(n_layer=1, num_labels=2, problem_type="regression", pad_token_id=0)
    model = build(GPT2ForSequenceClassification, gpt2_config(**numbers, **small_gpt2), 49)
    w.case("gpt2-numbers", model, sequence_batch(50, [3, 7], "gpt2", [[0.5, -3.0], [1.25, 0.75]], pad=0))


def relatives(w):
    """The members that change little of GPT-2 or BERT."""
    lengths = lambda g: torch.randint(2, 8, (3,), generator=g).tolist()

    def pretrained(name, model, kind, seed, keep, left, max_norm):
        path = w.case(name, model, make_batch(seed, [10, 1, 7, 4], kind, ["labels"], keep), left=left)
        g = torch.Generator().manual_seed(seed)
        batches = [make_batch(seed * 100 + i, lengths(g), kind, ["labels"], max(keep, 0.7)) for i in range(10)]
        w.steps(path, name, model, batches, dict(
            lr=schedule(1e-2, 4, 10), betas=[0.9, 0.95], eps=1e-8, weight_decay=0.1, max_norm=max_norm,
            schedule="linear warm-up over 4 steps, then constant"))
        return path

    model = build(OpenAIGPTLMHeadModel, gpt_config(), 51)
    eos, texts = generation(model, 52)
    model.config.eos_token_id = eos
    model.generation_config.eos_token_id = eos
    path = pretrained("gpt-causal-lm", model, "openai-gpt", 53, 0.8, True, 1.0)
    dump(path / "generation.json", texts)
    one = dict(n_layer=1, n_embd=24, n_head=2)
    w.case("gpt-base", build(OpenAIGPTModel, gpt_config(**one), 54), make_batch(55, [3, 9, 6], "openai-gpt", []))
    model = build(OpenAIGPTForSequenceClassification, gpt_config(num_labels=3, pad_token_id=17, **one), 56)
    w.case("gpt-classes", model, sequence_batch(57, [10, 1, 6], "openai-gpt", [1, 2, 0], pad=17))

    model = build(GPTNeoForCausalLM, neo_config(), 61)
    eos, texts = generation(model, 62)
    model.config.eos_token_id = eos
    model.generation_config.eos_token_id = eos
    path = pretrained("gpt-neo-causal-lm", model, "gpt_neo", 63, 0.8, True, 1.0)
    dump(path / "generation.json", texts)
    one = dict(num_layers=2, attention_types=[[["local", "global"], 1]], hidden_size=24, num_heads=2)
    w.case("gpt-neo-base", build(GPTNeoModel, neo_config(**one), 64), make_batch(65, [3, 9, 6], "gpt_neo", []))
    model = build(GPTNeoForSequenceClassification, neo_config(num_labels=3, pad_token_id=17, **one), 66)
    w.case("gpt-neo-classes", model, sequence_batch(67, [10, 1, 6], "gpt_neo", [1, 2, 0], pad=17))

    model = build(RobertaForMaskedLM, roberta_config(), 71)
    pretrained("roberta-masked-lm", model, "roberta", 72, 0.5, True, 5.0)
    w.case("roberta-base", build(RobertaModel, roberta_config(num_hidden_layers=1), 73),
           make_batch(74, [3, 9, 6], "roberta", []))
    model = build(RobertaForSequenceClassification, roberta_config(num_labels=3, classifier_dropout=0.2), 75)
    w.case("roberta-classes", model, sequence_batch(76, [9, 1, 5], "roberta", [2, 0, 1]))

    model = build(DistilBertForMaskedLM, distilbert_config(), 81)
    pretrained("distilbert-masked-lm", model, "distilbert", 82, 0.5, True, 5.0)
    w.case("distilbert-base", build(DistilBertModel, distilbert_config(n_layers=1), 83),
           make_batch(84, [3, 9, 6], "distilbert", []))
    model = build(DistilBertForSequenceClassification, distilbert_config(num_labels=3, seq_classif_dropout=0.3), 85)
    w.case("distilbert-classes", model, sequence_batch(86, [9, 1, 5], "distilbert", [2, 0, 1]))


def tagging(w, small_gpt2, small_bert):
    """A class for each token; and ELECTRA, whose discriminator judges each token."""
    one = dict(num_hidden_layers=1, **small_bert)
    names = dict(id2label={0: "O", 1: "B-x", 2: "I-x"}, label2id={"O": 0, "B-x": 1, "I-x": 2})
    model = build(BertForTokenClassification, bert_config(**one, **names), 91)
    w.case("bert-tags", model, token_batch(92, [9, 1, 5], "bert", 3))
    model = build(RobertaForTokenClassification, roberta_config(num_hidden_layers=1, num_labels=4), 93)
    w.case("roberta-tags", model, token_batch(94, [6, 8], "roberta", 4))
    model = build(DistilBertForTokenClassification, distilbert_config(n_layers=1, num_labels=5), 95)
    w.case("distilbert-tags", model, token_batch(96, [6, 8, 3], "distilbert", 5))
    model = build(GPT2ForTokenClassification, gpt2_config(n_layer=1, num_labels=4, **small_gpt2), 97)
    w.case("gpt2-tags", model, token_batch(98, [7, 3, 9], "gpt2", 4))
    model = build(ElectraForTokenClassification, electra_config(num_hidden_layers=1, num_labels=3), 99)
    w.case("electra-tags", model, token_batch(100, [7, 3, 9], "electra", 3))

    model = build(ElectraForPreTraining, electra_config(), 101)
    path = w.case("electra-discriminator", model, token_batch(102, [10, 1, 7, 4], "electra", 2, 1.0), left=True)
    g = torch.Generator().manual_seed(103)
    lengths = lambda: torch.randint(2, 8, (3,), generator=g).tolist()
    settings = dict(lr=schedule(1e-2, 4, 10), betas=[0.9, 0.95], eps=1e-6, weight_decay=0.01,
                    schedule="linear warm-up over 4 steps, then constant")
    batches = [token_batch(400 + i, lengths(), "electra", 2, 1.0) for i in range(10)]
    w.steps(path, "electra-discriminator", model, batches, dict(**settings, max_norm=1.0))
    model = build(ElectraForMaskedLM, electra_config(), 104)
    path = w.case("electra-generator", model, make_batch(105, [10, 1, 7, 4], "electra", ["labels"], 0.5), left=True)
    batches = [make_batch(500 + i, lengths(), "electra", ["labels"], 0.7) for i in range(10)]
    w.steps(path, "electra-generator", model, batches, dict(**settings, max_norm=5.0))
    model = build(ElectraModel, electra_config(num_hidden_layers=1, embedding_size=24), 106)
    w.case("electra-base", model, make_batch(107, [3, 9, 6], "electra", []))
    model = build(ElectraForSequenceClassification, electra_config(num_labels=3, classifier_dropout=0.2), 108)
    w.case("electra-classes", model, sequence_batch(109, [9, 1, 5], "electra", [2, 0, 1]))


# GPT-2's steps are all clipped; of BERT's some are and some are not.
GPT2_MAX_NORM = 1.0
BERT_MAX_NORM = 7.0
MARIAN_MAX_NORM = 4.0


def tolerances_text(tolerances):
    cases = []
    for name, report in tolerances.items():
        lines = [f"    {json.dumps(k)}: {json.dumps(v)}" for k, v in report.items()]
        cases.append(f"  {json.dumps(name)}: {{\n" + ",\n".join(lines) + "\n  }")
    return "{\n" + ",\n".join(cases) + "\n}\n"


def published(root):
    """Names, shapes and counts of published sizes, without allocating a weight."""
    gpt2 = lambda layers, width, heads: (GPT2LMHeadModel, GPT2Config(n_layer=layers, n_embd=width, n_head=heads))

    def bert(kind, layers, width, heads, **more):
        return kind, BertConfig(num_hidden_layers=layers, hidden_size=width, num_attention_heads=heads,
                                intermediate_size=4 * width, **more)

    def electra(kind, layers, width, heads, embedding):
        return kind, ElectraConfig(num_hidden_layers=layers, hidden_size=width, num_attention_heads=heads,
                                   intermediate_size=4 * width, embedding_size=embedding)

    sizes = {
        "gpt2": gpt2(12, 768, 12),
        "gpt2-medium": gpt2(24, 1024, 16),
        "gpt2-large": gpt2(36, 1280, 20),
        "gpt2-xl": gpt2(48, 1600, 25),
        "bert-base-uncased": bert(BertModel, 12, 768, 12),
        "bert-base-uncased-pretraining": bert(BertForPreTraining, 12, 768, 12),
        "bert-large-uncased": bert(BertModel, 24, 1024, 16),
        "bert-large-uncased-pretraining": bert(BertForPreTraining, 24, 1024, 16),
        "bert-base-cased": bert(BertModel, 12, 768, 12, vocab_size=28996),
        "bert-base-chinese": bert(BertModel, 12, 768, 12, vocab_size=21128),
        "openai-gpt": (OpenAIGPTLMHeadModel, OpenAIGPTConfig()),
        "gpt-neo-125m": (GPTNeoForCausalLM, GPTNeoConfig(hidden_size=768, num_layers=12, num_heads=12,
                                                         attention_types=[[["global", "local"], 6]])),
        "gpt-neo-1.3B": (GPTNeoForCausalLM, GPTNeoConfig()),
        "gpt-neo-2.7B": (GPTNeoForCausalLM, GPTNeoConfig(hidden_size=2560, num_layers=32, num_heads=20,
                                                         attention_types=[[["global", "local"], 16]])),
        "roberta-base": (RobertaModel, RobertaConfig(max_position_embeddings=514, type_vocab_size=1)),
        "roberta-large": (RobertaModel, RobertaConfig(max_position_embeddings=514, type_vocab_size=1, hidden_size=1024,
                                                      num_hidden_layers=24, num_attention_heads=16,
                                                      intermediate_size=4096)),
        "distilbert-base-uncased": (DistilBertModel, DistilBertConfig()),
        "bert-base-multilingual-cased": bert(BertModel, 12, 768, 12, vocab_size=119547),
        "bert-tiny": bert(BertModel, 2, 128, 2),
        "bert-mini": bert(BertModel, 4, 256, 4),
        "bert-small": bert(BertModel, 4, 512, 8),
        "bert-medium": bert(BertModel, 8, 512, 8),
        "electra-small-discriminator": electra(ElectraModel, 12, 256, 4, 128),
        "electra-small-discriminator-pretraining": electra(ElectraForPreTraining, 12, 256, 4, 128),
        "electra-base-discriminator": electra(ElectraModel, 12, 768, 12, 768),
        "electra-base-discriminator-pretraining": electra(ElectraForPreTraining, 12, 768, 12, 768),
        "electra-large-discriminator": electra(ElectraModel, 24, 1024, 16, 1024),
        "electra-large-discriminator-pretraining": electra(ElectraForPreTraining, 24, 1024, 16, 1024),
        "electra-small-generator": electra(ElectraModel, 12, 256, 4, 128),
        "electra-small-generator-pretraining": electra(ElectraForMaskedLM, 12, 256, 4, 128),
        "electra-base-generator": electra(ElectraModel, 12, 256, 4, 768),
        "electra-base-generator-pretraining": electra(ElectraForMaskedLM, 12, 256, 4, 768),
        "electra-large-generator": electra(ElectraModel, 24, 256, 4, 1024),
        "electra-large-generator-pretraining": electra(ElectraForMaskedLM, 24, 256, 4, 1024),
        "opus-mt-en-de": (MarianMTModel, MarianConfig(
            max_position_embeddings=512, d_model=512, encoder_layers=6, encoder_ffn_dim=2048, encoder_attention_heads=8,
            decoder_layers=6, decoder_ffn_dim=2048, decoder_attention_heads=8, activation_function="swish",
            scale_embedding=True)),
    }
    folder = root / "published"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    counts = {}
    for name, (kind, config) in sizes.items():
        with torch.device("meta"):
            model = kind(config)
        tied = model.get_expanded_tied_weights_keys(all_submodels=True)
        # Sines and cosines are not saved, and a fixed bias of logits is a buffer.
        state = {n: t for n, t in model.state_dict().items()
                 if not n.endswith("embed_positions.weight") and n != "final_logits_bias"}
        counts[name] = sum(t.numel() for n, t in state.items() if n not in tied)
        if name in ("gpt2", "bert-base-uncased-pretraining", "openai-gpt", "gpt-neo-125m", "opus-mt-en-de",
                    "electra-small-discriminator-pretraining", "electra-base-generator-pretraining"):
            lines = [f"{n} {'x'.join(map(str, t.shape))}" + (f" = {tied[n]}" if n in tied else "")
                     for n, t in state.items()]
            (folder / f"{name.removesuffix('-pretraining')}.txt").write_text("\n".join(lines) + "\n")
    dump(root / "counts.json", counts)


# Folders that other generators make, by the beginnings of their names.
OTHERS = {
    "generate_xl.py": ("xl-",),
    "generate_bidirectional.py": ("bilstm-", "elmo-", "bi-transformer-"),
}


def differences(left, right, owns):
    """Files of the folders that `owns` says are ours which are missing, extra or differ."""
    files = lambda root: {p.relative_to(root) for p in root.rglob("*") if p.is_file()}
    ours = files(left)
    made = files(right)
    missing = [p for p in made if p not in ours or not filecmp.cmp(left / p, right / p, shallow=False)]
    extra = [p for p in ours - made if len(p.parts) > 1 and "__pycache__" not in p.parts and owns(p.parts[0])]
    return sorted(map(str, missing + extra))


def command(description, script, make):
    """The command line of a generator: writes beside the script, or compares with what is there."""
    parser = argparse.ArgumentParser(description=description.split("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing; compare with what is here")
    script = Path(script).resolve()
    if not parser.parse_args().check:
        make(script.parent)
        return 0
    own = OTHERS.get(script.name)
    others = tuple(p for prefixes in OTHERS.values() for p in prefixes)
    owns = lambda folder: folder.startswith(own) if own else not folder.startswith(others)
    with tempfile.TemporaryDirectory() as scratch:
        make(Path(scratch))
        changed = differences(script.parent, Path(scratch), owns)
    print("\n".join(f"differs: {c}" for c in changed) or "the same bytes")
    return 1 if changed else 0


if __name__ == "__main__":
    sys.exit(command(__doc__, __file__, generate))
