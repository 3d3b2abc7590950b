"""Makes the fixtures of the bidirectional language models, which no library that keeps model folders has: BiLSTM, ELMo and
two opposite Transformers, put together from PyTorch's `nn.LSTM` and `nn.Conv1d` and from `transformers`' GPT.

    env/bin/python generate_bidirectional.py            # with the environment of generate.py; rewrites the folders bi-*
    env/bin/python generate_bidirectional.py --check    # makes them again elsewhere and compares the bytes

Files are as in `generate.py`. Rows are run one by one without their padding; the second direction reads them flipped. The loss is the
mean over all tokens that have a token before them in their direction, in both directions. ELMo's cells are also written
out step by step, since PyTorch's have no bounds; without bounds the two are compared here.
"""

import sys

import generate as g
import h5py
import torch
from safetensors.torch import save_file
from torch import nn
from transformers import OpenAIGPTConfig, OpenAIGPTModel

VOCAB = g.VOCAB
CHARACTERS, LENGTH, SHIFT = 30, 9, 128


class Bidirectional(nn.Module):
    """Rows to both directions' states: `embed(ids)` [t, d], `layers(x, direction)` a list of [t, d]."""

    def logits(self, x):
        return x @ self.output_weight().T + self.output_bias()

    def output_bias(self):
        return 0.0

    def states(self, ids):
        x = self.embed(ids)
        ahead, back = self.layers(x, 0), self.layers(x.flip(0), 1)
        return [torch.cat([a, b.flip(0)], -1) for a, b in zip(ahead, back)]

    def run(self, batch, base=False):
        rows, masks = batch["input_ids"], batch["attention_mask"]
        width, d = len(rows[0]), None
        out, terms = {}, []
        states = []
        for row, mask in zip(rows, masks):
            states.append(self.states(torch.tensor(row)[torch.tensor(mask) == 1]))
        pad = lambda x: torch.cat([x, x.new_zeros(width - len(x), x.shape[1])])
        for i in range(len(states[0])):
            out[f"hidden_states.{i}"] = torch.stack([pad(s[i]) for s in states])
        if base:
            out["last_hidden_state"] = out[f"hidden_states.{len(states[0]) - 1}"]
            return out, None
        d = states[0][-1].shape[1] // 2
        sides = {"forward_logits": slice(0, d), "backward_logits": slice(d, 2 * d)}
        for name, part in sides.items():
            out[name] = torch.stack([pad(self.logits(s[-1][:, part])) for s in states])
        if "labels" in batch:
            count = 0
            for r, mask in enumerate(masks):
                n, wanted = sum(mask), torch.tensor(batch["labels"][r])
                for predicted, labels in [(out["forward_logits"][r, :n - 1], wanted[1:n]),
                                          (out["backward_logits"][r, 1:n], wanted[:n - 1])]:
                    terms.append(nn.functional.cross_entropy(predicted, labels, ignore_index=-100, reduction="sum"))
                    count += (labels != -100).sum().item()
            out["loss"] = sum(terms) / count
        return out, out.get("loss")


class BiLstm(Bidirectional):
    def __init__(self, vocab, d, layers):
        super().__init__()
        self.config = dict(model_type="bilstm", vocab_size=vocab, hidden_size=d, num_hidden_layers=layers,
                           embedding_dropout=0.0, dropout=0.0, initializer_range=0.02, tie_word_embeddings=True)
        self.embeddings = nn.Embedding(vocab, d)
        self.cells = nn.ModuleList(nn.ModuleList(nn.LSTM(d, d) for _ in range(layers)) for _ in range(2))
        self.bias = nn.Parameter(torch.zeros(vocab))

    def embed(self, ids):
        return self.embeddings(ids)

    def layers(self, x, direction):
        out = [x]
        for cell in self.cells[direction]:
            x = cell(x)[0]
            out.append(x)
        return out

    def output_weight(self):
        return self.embeddings.weight

    def output_bias(self):
        return self.bias

    def tensors(self):
        out = {"embeddings.weight": self.embeddings.weight, "lm_head.bias": self.bias}
        for direction, suffix in enumerate(["", "_reverse"]):
            for i, cell in enumerate(self.cells[direction]):
                out[f"lstm.weight_ih_l{i}{suffix}"] = cell.weight_ih_l0
                out[f"lstm.weight_hh_l{i}{suffix}"] = cell.weight_hh_l0
                out[f"lstm.bias_l{i}{suffix}"] = cell.bias_ih_l0
        return out


class Elmo(Bidirectional):
    FILTERS = [(1, 4), (2, 6), (5, 8)]

    def __init__(self, vocab, d, cells, layers, clips, alphabet=CHARACTERS):
        super().__init__()
        wide, c = sum(n for _, n in self.FILTERS), 4
        self.clips, self.d, self.h = clips, d, cells
        self.config = dict(
            model_type="elmo", n_tokens_vocab=vocab, dropout=0.0, bidirectional=True, initializer_range=0.02,
            lstm=dict(dim=cells, projection_dim=d, n_layers=layers, use_skip_connections=True, cell_clip=clips[0], proj_clip=clips[1]),
            char_cnn=dict(activation="relu", embedding=dict(dim=c), filters=self.FILTERS, n_highway=2,
                          n_characters=alphabet, max_characters_per_token=LENGTH))
        self.characters = nn.Embedding(alphabet, c)
        self.convolutions = nn.ModuleList(nn.Conv1d(c, n, width) for width, n in self.FILTERS)
        self.highways = nn.ModuleList(nn.Linear(wide, 2 * wide) for _ in range(2))
        self.projection = nn.Linear(wide, d)
        self.cells = nn.ModuleList(nn.ModuleList(nn.LSTM(d, cells, proj_size=d) for _ in range(layers)) for _ in range(2))
        self.softmax = nn.Linear(d, vocab)
        generator = torch.Generator().manual_seed(5)
        self.spellings = torch.randint(CHARACTERS, (vocab, LENGTH), generator=generator)

    def embed(self, ids):
        x = self.characters(self.spellings[ids]).transpose(1, 2)
        x = torch.cat([conv(x).max(-1).values for conv in self.convolutions], -1).relu()
        for highway in self.highways:
            h, gate = highway(x).chunk(2, -1)
            gate = gate.sigmoid()
            x = gate * x + (1 - gate) * h.relu()
        return self.projection(x)

    def cell(self, lstm, x):
        """Step by step, with bounds."""
        bound = lambda v, b: v if b is None else v.clamp(-b, b)
        y, c, out = x.new_zeros(self.d), x.new_zeros(self.h), []
        for t in x:
            i, f, g_, o = (lstm.weight_ih_l0 @ t + lstm.bias_ih_l0 + lstm.weight_hh_l0 @ y).chunk(4)
            c = bound(i.sigmoid() * g_.tanh() + f.sigmoid() * c, self.clips[0])
            y = bound(lstm.weight_hr_l0 @ (o.sigmoid() * c.tanh()), self.clips[1])
            out.append(y)
        return torch.stack(out)

    def layers(self, x, direction):
        out = [x]
        for i, lstm in enumerate(self.cells[direction]):
            y = self.cell(lstm, x)
            if self.clips == (None, None):
                theirs = lstm(x)[0]
                assert torch.allclose(y, theirs, atol=1e-6), (y - theirs).abs().max()
            x = y + x if i > 0 else y
            out.append(x)
        return out

    def output_weight(self):
        return self.softmax.weight

    def output_bias(self):
        return self.softmax.bias

    def tensors(self):
        e = "token_embedder."
        out = {e + "char_embedding.weight": self.characters.weight, "softmax.weight": self.softmax.weight,
               "softmax.bias": self.softmax.bias, e + "projection.weight": self.projection.weight,
               e + "projection.bias": self.projection.bias}
        for i, conv in enumerate(self.convolutions):
            out[f"{e}char_conv_{i}.weight"] = conv.weight
            out[f"{e}char_conv_{i}.bias"] = conv.bias
        for i, highway in enumerate(self.highways):
            out[f"{e}highways.{i}.weight"] = highway.weight
            out[f"{e}highways.{i}.bias"] = highway.bias
        for direction, name in enumerate(["forward", "backward"]):
            for i, lstm in enumerate(self.cells[direction]):
                layer = f"elmo_lstm.{name}_layer_{i}."
                out[layer + "input_linearity.weight"] = lstm.weight_ih_l0
                out[layer + "state_linearity.weight"] = lstm.weight_hh_l0
                out[layer + "state_linearity.bias"] = lstm.bias_ih_l0
                out[layer + "state_projection.weight"] = lstm.weight_hr_l0
        return out

    def buffers_on_disk(self):
        return {"token_embedder.spellings": (self.spellings - SHIFT).float()}


def spelled(word):
    """As ELMo: bytes between marks; the sentence's ends are characters of their own."""
    marks = {"</S>": [257], "<S>": [256]}
    inside = marks.get(word, list(word.encode()))[:LENGTH - 2]
    return ([258] + inside + [259] + [260] * LENGTH)[:LENGTH]


def publish(model, path):
    """Weights as the authors' TensorFlow program writes them."""
    with h5py.File(path, "w") as f:
        put = lambda name, t: f.create_dataset(name, data=t.detach().numpy(), dtype="float32")
        put("char_embed", model.characters.weight)
        for i, conv in enumerate(model.convolutions):
            put(f"CNN/W_cnn_{i}", conv.weight.permute(2, 1, 0)[None])  # [1, width, d, n]
            put(f"CNN/b_cnn_{i}", conv.bias)
        for i, highway in enumerate(model.highways):
            (new, gate), (b_new, b_gate) = highway.weight.chunk(2), highway.bias.chunk(2)
            put(f"CNN_high_{i}/W_transform", new.T)
            put(f"CNN_high_{i}/b_transform", b_new)
            put(f"CNN_high_{i}/W_carry", -gate.T)
            put(f"CNN_high_{i}/b_carry", -b_gate)
        put("CNN_proj/W_proj", model.projection.weight.T)
        put("CNN_proj/b_proj", model.projection.bias)
        theirs = lambda t: torch.cat([t.chunk(4)[k] for k in (0, 2, 1, 3)])  # input, new, forget, output
        for direction in range(2):
            for i, lstm in enumerate(model.cells[direction]):
                cell = f"RNN_{direction}/RNN/MultiRNNCell/Cell{i}/LSTMCell/"
                put(cell + "W_0", torch.cat([theirs(lstm.weight_ih_l0), theirs(lstm.weight_hh_l0)], 1).T)
                bias = theirs(lstm.bias_ih_l0).clone()
                bias[2 * model.h:3 * model.h] -= 1.0  # added when the program runs
                put(cell + "B", bias)
                put(cell + "W_P_0", lstm.weight_hr_l0.T)


class BiTransformer(Bidirectional):
    def __init__(self, config):
        super().__init__()
        self.gpts = nn.ModuleList(OpenAIGPTModel(config) for _ in range(2))
        self.gpts[1].tokens_embed, self.gpts[1].positions_embed = self.gpts[0].tokens_embed, self.gpts[0].positions_embed
        kept = ["vocab_size", "n_positions", "n_embd", "n_layer", "n_head", "afn", "resid_pdrop", "embd_pdrop", "attn_pdrop",
                "layer_norm_epsilon", "initializer_range"]
        self.config = dict(model_type="bi-transformer", tie_word_embeddings=True, **{k: getattr(config, k) for k in kept})

    def states(self, ids):
        places = torch.arange(len(ids))
        run = lambda gpt, i, p: gpt(i[None], position_ids=p[None], output_hidden_states=True).hidden_states
        ahead, back = run(self.gpts[0], ids, places), run(self.gpts[1], ids.flip(0), places.flip(0))
        return [torch.cat([a[0], b[0].flip(0)], -1) for a, b in zip(ahead, back)]

    def output_weight(self):
        return self.gpts[0].tokens_embed.weight

    def tensors(self):
        out = {}
        for scope, gpt in zip(["", "backward."], self.gpts):
            for name, p in gpt.named_parameters(remove_duplicate=False):
                if scope and not name.startswith("h."):
                    continue
                out[f"transformer.{scope}{name}"] = p
        return out


def randomised(model, seed):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            noise = torch.randn(p.shape, generator=generator)
            if "bias_hh" in name:
                p.zero_()
            elif "ln_" in name and name.endswith("weight"):
                p.copy_(1.0 + 0.2 * noise)
            else:
                p.copy_((0.25 if p.ndim >= 2 else 0.1) * noise)
    return model.eval()


def on_disk(name, t):
    """A pattern's vectors one after the other."""
    t = t.detach()
    return (t.transpose(1, 2).reshape(len(t), -1) if "char_conv" in name and t.ndim == 3 else t).contiguous().clone()


def results(model, batch, base):
    model.zero_grad()
    out, loss = model.run(batch, base)
    if loss is not None:
        loss.backward()
        for name, p in model.tensors().items():
            out[f"grad.{name}"] = on_disk(name, p.grad)
    return {n: v.detach().clone().contiguous() for n, v in out.items()}


def make_batch(seed, lengths, labels=True):
    generator = torch.Generator().manual_seed(seed)
    width = max(lengths)
    ids = torch.randint(VOCAB, (len(lengths), width), generator=generator)
    mask = [[int(i < n) for i in range(width)] for n in lengths]
    batch = {"input_ids": ids.tolist(), "attention_mask": mask}
    if labels:
        wanted = ids.masked_fill(torch.tensor(mask) == 0, -100)
        wanted[torch.rand(wanted.shape, generator=generator) < 0.15] = -100
        batch["labels"] = wanted.tolist()
    return batch


class Writer(g.Writer):
    def bi(self, name, model, architecture, batch, base=False):
        path = self.folder(name)
        g.dump(path / "config.json", {**model.config, "architectures": [architecture]})
        tensors = {n: on_disk(n, t) for n, t in model.tensors().items()}
        if hasattr(model, "buffers_on_disk"):
            tensors |= model.buffers_on_disk()
        if base:
            tensors = {n.removeprefix("transformer."): t for n, t in tensors.items() if "softmax" not in n and "lm_head" not in n}
        save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
        expected = results(model, batch, base)
        exact = results(model.double(), batch, base)
        model.float()
        g.dump(path / "batch.json", batch)
        save_file(expected, path / "expected.safetensors")
        self.tolerances[name] = g.deviations(expected, exact)
        return path

    def steps_of(self, path, name, make, batches, settings):
        records, weights = train(make(), batches, settings)
        exact_records, exact_weights = train(make().double(), batches, settings)
        norms = [r["grad_norm"] for r in records]
        print(f"{name}: {sum(n > settings['max_norm'] for n in norms)} of {len(norms)} steps clipped")
        buffers = getattr(make(), "buffers_on_disk", dict)()
        g.dump(path / "steps.json", {
            **settings, "losses": [r["loss"] for r in records], "grad_norms": norms,
            "no_decay": sorted(n for n in weights if weights[n].ndim < 2), "batches": batches})
        save_file(weights | buffers, path / "steps.safetensors")
        report = g.deviations(weights | buffers, exact_weights | buffers)
        for key in ("loss", "grad_norm"):
            off = [abs(a[key] - b[key]) for a, b in zip(records, exact_records)]
            report[key] = {"max_abs": g.significant(max(off)),
                           "rel": g.significant(max(o / abs(b[key]) for o, b in zip(off, exact_records)))}
        self.tolerances[name + "-steps"] = report


def train(model, batches, settings):
    learns = list({id(p): p for p in model.tensors().values()}.values())
    groups = [{"params": [p for p in learns if p.ndim >= 2], "weight_decay": settings["weight_decay"]},
              {"params": [p for p in learns if p.ndim < 2], "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, lr=0.0, betas=tuple(settings["betas"]), eps=settings["eps"])
    records = []
    for batch, lr in zip(batches, settings["lr"], strict=True):
        for group in optimiser.param_groups:
            group["lr"] = lr
        optimiser.zero_grad()
        loss = model.run(batch)[1]
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(learns, settings["max_norm"])
        optimiser.step()
        records.append({"loss": loss.item(), "grad_norm": norm.item()})
    return records, {n: on_disk(n, t) for n, t in model.tensors().items()}


def generate_all(root):
    w = Writer(root)
    gpt = lambda: OpenAIGPTConfig(vocab_size=VOCAB, n_positions=g.POSITIONS, n_embd=24, n_head=2, n_layer=2, resid_pdrop=0.0,
                                  embd_pdrop=0.0, attn_pdrop=0.0, attn_implementation="eager")
    makes = {
        "bilstm": (lambda: randomised(BiLstm(VOCAB, 20, 2), 101), "BiLstm"),
        "elmo": (lambda: randomised(Elmo(VOCAB, 10, 26, 2, (0.3, 0.25)), 102), "Elmo"),
        "bi-transformer": (lambda: randomised(BiTransformer(gpt()), 103), "BiTransformer"),
    }
    for seed, (name, (make, architecture)) in enumerate(makes.items()):
        path = w.bi(f"{name}-bidirectional-lm", make(), f"{architecture}ForBidirectionalLM", make_batch(110 + seed, [9, 1, 6, 9]))
        batches = [make_batch(120 + 10 * seed + i, [7, 4, 7]) for i in range(10)]
        # So that some steps are clipped and some are not.
        most = {"bilstm": 0.295, "elmo": 0.34, "bi-transformer": 2.2}[name]
        w.steps_of(path, f"{name}-bidirectional-lm", make, batches, dict(
            lr=g.schedule(1e-2, 4, 10), betas=[0.9, 0.999], eps=1e-8, weight_decay=0.1, max_norm=most,
            schedule="linear warm-up over 4 steps, then constant"))
        w.bi(f"{name}-base", make(), f"{architecture}Model", make_batch(150 + seed, [5, 8, 2], labels=False), base=True)
    # Without bounds, as PyTorch's own.
    model = randomised(Elmo(VOCAB, 10, 26, 2, (None, None)), 104)
    w.bi("elmo-without-bounds", model, "ElmoForBidirectionalLM", make_batch(160, [6, 3]))
    # As its authors published it.
    model = randomised(Elmo(VOCAB, 10, 26, 2, (0.3, 0.25), alphabet=261), 105)
    words = ["</S>", "<S>", "<UNK>"] + [f"w{i}" if i % 3 else f"wörter{i}" for i in range(VOCAB - 3)]
    model.spellings = torch.tensor([spelled(word) for word in words])
    path = w.folder("elmo-published")
    options = {k: model.config[k] for k in ("lstm", "char_cnn", "bidirectional")} | {"n_tokens_vocab": VOCAB}
    options["char_cnn"] = options["char_cnn"] | {"n_characters": 262}
    g.dump(path / "tiny_options.json", options)
    publish(model, path / "tiny_weights.hdf5")
    (path / "words.txt").write_text("".join(f"{word}\n" for word in words))
    batch = make_batch(170, [6, 3, 1], labels=False)
    g.dump(path / "batch.json", batch)
    expected, exact = results(model, batch, True), results(model.double(), batch, True)
    save_file(expected, path / "expected.safetensors")
    w.tolerances["elmo-published"] = g.deviations(expected, exact)
    (root / "tolerances-bidirectional.json").write_text(g.tolerances_text(w.tolerances))


if __name__ == "__main__":
    sys.exit(g.command(__doc__, __file__, generate_all))
