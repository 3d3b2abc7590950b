"""Makes the fixtures of Transformer-XL, which the last `transformers` with it (4.35) computes, in an environment of its own.

    python -m venv env && env/bin/pip install -r requirements-xl.txt
    env/bin/python generate_xl.py            # rewrites the folders xl-* beside this file, and tolerances-xl.json
    env/bin/python generate_xl.py --check    # makes them again elsewhere and compares the bytes

As in `generate.py`, whose tools it uses; in addition `segment.json` says in segments of how many tokens the rows were run, with the
memory carried from one to the next. Log-probabilities are those of the whole rows; the loss is the mean over all labels but the
first of a row, across the borders of segments; no gradient flows through a memory.
"""

import contextlib
import sys
import warnings

import generate as g
import torch
from safetensors.torch import save_file
from transformers import TransfoXLConfig, TransfoXLLMHeadModel, TransfoXLModel

warnings.simplefilter("ignore")
VOCAB = g.VOCAB


def config(**changes):
    """Heads wider than the stream's share, groups of tokens, a band of the memory's length and a clamp below it."""
    fields = dict(vocab_size=VOCAB, cutoffs=[20, 61], d_model=24, d_embed=16, n_head=2, d_head=9, d_inner=35, div_val=2,
                  n_layer=2, mem_len=6, clamp_len=4, same_length=True, untie_r=True, dropout=0.0, dropatt=0.0,
                  trainer_compatible=True)
    return TransfoXLConfig(**{**fields, **changes})


def build(kind, conf, seed):
    model = kind(conf).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            noise = torch.randn(p.shape, generator=generator)
            if "layer_norm.weight" in name:
                p.copy_(1.0 + 0.2 * noise)
            elif p.ndim == 2:
                p.copy_(0.25 * noise)
            else:
                p.copy_(0.1 * noise)
    return model


@contextlib.contextmanager
def no_float():
    """The reference takes masked scores in float32 also in float64; here it keeps their type."""
    kept = torch.Tensor.float
    torch.Tensor.float = lambda self: self
    try:
        yield
    finally:
        torch.Tensor.float = kept


def clone(model, dtype):
    other = type(model)(model.config).eval()
    other.load_state_dict(model.state_dict())
    other = other.to(dtype)
    if dtype == torch.float64:
        body = getattr(other, "transformer", other)
        d = model.config.d_model
        body.pos_emb.inv_freq = 1 / (10000 ** (torch.arange(0.0, d, 2.0, dtype=dtype) / d))
    return other


def run(model, batch, segment, hidden=False, mems=None):
    """Outputs, loss, and the memory after it."""
    ids = torch.tensor(batch["input_ids"])
    labels = torch.tensor(batch["labels"]) if "labels" in batch else None
    body = getattr(model, "transformer", model)
    parts, states = [], []
    for at in range(0, ids.shape[1], segment):
        o = body(ids[:, at:at + segment], mems=mems, output_hidden_states=hidden, return_dict=True)
        mems = o.mems
        parts.append(o.last_hidden_state)
        states.append(o.hidden_states)
    last = torch.cat(parts, 1)
    out, loss = {}, None
    if hidden:
        for i in range(len(states[0])):
            out[f"hidden_states.{i}"] = torch.cat([s[i] for s in states], 1)
    if body is model:
        out["last_hidden_state"] = last
        return out, None, mems
    out["logits"] = model.crit(last).view(*ids.shape, -1)
    if labels is not None:
        before, wanted = out["logits"][:, :-1], labels[:, 1:]
        counts = wanted != -100
        loss = -before[counts].gather(1, wanted[counts][:, None]).mean()
        out["loss"] = loss
    return out, loss, mems


def outputs_and_gradients(model, batch, segment, names, hidden):
    model.zero_grad()
    out, loss, _ = run(model, batch, segment, hidden)
    if loss is not None:
        loss.backward()
        parameters = dict(model.named_parameters(remove_duplicate=False))
        for name in names:
            if name in parameters and parameters[name].grad is not None:
                out[f"grad.{name}"] = parameters[name].grad
    return {n: v.detach().clone().contiguous() for n, v in out.items()}


def check_loss(model, batch):
    """Rows in one piece: the reference computes the same loss."""
    ids, labels = torch.tensor(batch["input_ids"]), torch.tensor(batch["labels"])
    ours = run(model, batch, ids.shape[1])[1].item()
    theirs = model(ids, labels=labels).loss.item()
    assert abs(ours - theirs) < 1e-5, (ours, theirs)


def make_batch(seed, rows, width, labels=True):
    gen = torch.Generator().manual_seed(seed)
    ids = torch.randint(VOCAB, (rows, width), generator=gen)
    batch = {"input_ids": ids.tolist()}
    if labels:
        wanted = ids.clone()
        wanted[torch.rand((rows, width), generator=gen) < 0.2] = -100
        batch["labels"] = wanted.tolist()
    return batch


def saved_names(path):
    if list(path.glob("*.safetensors")):
        return g.saved_names(path)
    return list(torch.load(path / "pytorch_model.bin").keys())


class Writer(g.Writer):
    def xl(self, name, model, batch, segment, hidden=True, safe=True):
        path = self.folder(name)
        model.save_pretrained(path, safe_serialization=safe)
        names = saved_names(path)
        expected = outputs_and_gradients(model, batch, segment, names, hidden)
        with no_float():
            exact = outputs_and_gradients(clone(model, torch.float64), batch, segment, names, hidden)
        g.dump(path / "batch.json", batch)
        g.dump(path / "segment.json", {"segment_length": segment})
        save_file(expected, path / "expected.safetensors")
        self.tolerances[name] = g.deviations(expected, exact)
        return path

    def xl_steps(self, path, name, model, batches, settings):
        """Ten steps of AdamW along one text a row: each begins with the memory that the one before left."""
        records, weights = train(clone(model, torch.float32), batches, settings)
        with no_float():
            exact_records, exact_weights = train(clone(model, torch.float64), batches, settings)
        kept = [n for n in saved_names(path) if n in weights]
        weights = {n: weights[n].contiguous() for n in kept}
        norms = [r["grad_norm"] for r in records]
        print(f"{name}: {sum(n > settings['max_norm'] for n in norms)} of {len(norms)} steps clipped")
        g.dump(path / "steps.json", {
            **settings,
            "losses": [r["loss"] for r in records],
            "grad_norms": norms,
            "no_decay": sorted(n for n in kept if weights[n].ndim < 2),
            "batches": batches,
        })
        save_file(weights, path / "steps.safetensors")
        report = g.deviations(weights, exact_weights)
        for key in ("loss", "grad_norm"):
            off = [abs(a[key] - b[key]) for a, b in zip(records, exact_records)]
            report[key] = {"max_abs": g.significant(max(off)),
                           "rel": g.significant(max(o / abs(b[key]) for o, b in zip(off, exact_records)))}
        self.tolerances[name + "-steps"] = report


def train(model, batches, settings):
    groups = [{"params": [], "weight_decay": settings["weight_decay"]}, {"params": [], "weight_decay": 0.0}]
    for p in model.parameters():
        groups[0 if p.ndim >= 2 else 1]["params"].append(p)
    optimiser = torch.optim.AdamW(groups, lr=0.0, betas=tuple(settings["betas"]), eps=settings["eps"])
    records, mems = [], None
    for batch, lr in zip(batches, settings["lr"], strict=True):
        for group in optimiser.param_groups:
            group["lr"] = lr
        optimiser.zero_grad()
        _, loss, mems = run(model, batch, len(batch["input_ids"][0]), mems=mems)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), settings["max_norm"])
        optimiser.step()
        records.append({"loss": loss.item(), "grad_norm": norm.item()})
    return records, {n: t.detach() for n, t in model.state_dict().items()}


def generation(model, seed):
    """Greedy continuations by the library, one prompt at a time."""
    gen = torch.Generator().manual_seed(seed)
    runs = []
    for n, new in [(1, 20), (5, 14), (9, 12), (20, 20)]:
        prompt = torch.randint(VOCAB, (1, n), generator=gen)
        ids = model.generate(prompt, do_sample=False, max_new_tokens=new, eos_token_id=None, pad_token_id=0)
        runs.append({"prompt": prompt[0].tolist(), "max_new_tokens": new, "ids": ids[0, n:].tolist()})
    # The end token: one that some continuations come to late.
    late = lambda token: sum(token in r["ids"] and r["ids"].index(token) >= 3 for r in runs)
    eos = max(range(VOCAB), key=late)
    assert late(eos) >= 1, runs
    stopped = [{**r, "ids": r["ids"][:r["ids"].index(eos) + 1] if eos in r["ids"] else r["ids"]} for r in runs]
    return {"eos_token_id": eos, "ignoring_eos": runs, "until_eos": stopped}


def generate_all(root):
    w = Writer(root)
    model = build(TransfoXLLMHeadModel, config(), 81)
    check_loss(model, make_batch(82, 2, 9))
    texts = generation(model, 84)
    model.config.eos_token_id = model.generation_config.eos_token_id = texts["eos_token_id"]
    path = w.xl("xl-causal-lm", model, make_batch(83, 3, 13), 5)
    g.dump(path / "generation.json", texts)
    gen = torch.Generator().manual_seed(85)
    rows = torch.randint(VOCAB, (3, 70), generator=gen)
    batches = [{"input_ids": rows[:, 7 * i:7 * i + 7].tolist(), "labels": rows[:, 7 * i:7 * i + 7].tolist()} for i in range(10)]
    w.xl_steps(path, "xl-causal-lm", model, batches, dict(
        lr=g.schedule(1e-2, 4, 10), betas=[0.9, 0.999], eps=1e-8, weight_decay=0.1, max_norm=4.5,
        schedule="linear warm-up over 4 steps, then constant"))
    # Characters: one table, one pair of vectors for all layers, all of the memory seen at its true distance.
    chars = dict(cutoffs=[], d_embed=24, div_val=1, same_length=False, clamp_len=-1, untie_r=False)
    model = build(TransfoXLLMHeadModel, config(**chars, mem_len=9), 86)
    check_loss(model, make_batch(87, 2, 9))
    w.xl("xl-characters", model, make_batch(88, 2, 11), 4, hidden=False)
    # Norms first, one table of another width with groups, in a pickle.
    model = build(TransfoXLLMHeadModel, config(pre_lnorm=True, div_val=1, mem_len=4, clamp_len=7, n_layer=1), 89)
    check_loss(model, make_batch(90, 2, 9))
    w.xl("xl-norms-first", model, make_batch(91, 2, 8), 8, hidden=False, safe=False)
    model = build(TransfoXLModel, config(n_layer=1, proj_share_all_but_first=False), 92)
    w.xl("xl-base", model, make_batch(93, 2, 10, labels=False), 3)
    (root / "tolerances-xl.json").write_text(g.tolerances_text(w.tolerances))
    published(root)


def published(root):
    """Parameter counts of published sizes, without allocating a weight."""
    characters = dict(cutoffs=[], div_val=1, vocab_size=204)
    words = dict(cutoffs=[20000, 40000, 200000], vocab_size=267735)
    sizes = {
        "transfo-xl-enwik8-base": dict(n_layer=12, d_model=512, d_embed=512, n_head=8, d_head=64, d_inner=2048,
                                       untie_r=False, **characters),
        "transfo-xl-enwik8-large": dict(n_layer=24, d_model=1024, d_embed=1024, n_head=8, d_head=128, d_inner=3072,
                                        untie_r=False, **characters),
        "transfo-xl-wt103-base": dict(n_layer=16, d_model=410, d_embed=410, n_head=10, d_head=41, d_inner=2100, div_val=1,
                                      **words),
        "transfo-xl-wt103": dict(div_val=4, **words),
    }
    counts = {}
    for name, fields in sizes.items():
        with torch.device("meta"):
            model = TransfoXLLMHeadModel(TransfoXLConfig(**fields))
        counts[name] = sum(p.numel() for p in model.parameters())
    g.dump(root / "counts-xl.json", counts)


if __name__ == "__main__":
    sys.exit(g.command(__doc__, __file__, generate_all))
