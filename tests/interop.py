"""Checks that `transformers` loads what `genus` writes, unchanged, and computes the same. Run by hand:

    python -m venv env && env/bin/pip install -r tests/parity/requirements.txt
    cargo build --release
    env/bin/python tests/interop.py                    # trains a tiny GPT-2 and a tiny BERT for a few steps first
    env/bin/python tests/interop.py FOLDER...          # model folders that genus wrote (a run's checkpoint-<step>)

For each folder: the class named by `architectures` loads with no tensor missing, left over or of another shape; its
outputs and loss on a padded batch equal those of `genus forward`, and its gradients those of `--grad`; `AutoTokenizer`
loads, gives text back, and its ids for a prompt lead `generate` to the ids that `genus generate --prompt` prints.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parent.parent
TEXTS = ["The quick brown fox jumps over the lazy dog.", "Attention is all you need, they said in 2017.", "naïve café, 注意力"]
# Two float32 computations of a few layers that sum in different orders; measured on the fixtures: about 5e-7.
TOLERANCE = 2e-5


class Checker:
    def __init__(self, genus, scratch):
        self.genus_path, self.scratch, self.failures = genus, scratch, 0

    def genus(self, *arguments):
        done = subprocess.run([self.genus_path, *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                              text=True)
        if done.returncode != 0:
            raise SystemExit(f"genus {' '.join(map(str, arguments))} failed:\n{done.stderr}")
        return done.stdout

    def report(self, what, good, detail=""):
        self.failures += not good
        print(f"  {'ok  ' if good else 'FAIL'} {what} {detail}".rstrip())

    def check(self, folder):
        print(folder)
        config = json.loads((folder / "config.json").read_text())
        kind = getattr(transformers, config["architectures"][0])
        model, info = kind.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32,
                                           output_loading_info=True)
        model.eval()
        self.report(f"loads as {kind.__name__}", not any(info.get(k) for k in
                    ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs")), str(info))
        self.outputs(folder, model)
        self.tokenizer(folder, model)

    def outputs(self, folder, model):
        config = model.config
        g = torch.Generator().manual_seed(0)
        lengths = [min(n, config.max_position_embeddings) for n in (17, 5, 11)]
        width = max(lengths)
        mask = torch.tensor([[int(i < n) for i in range(width)] for n in lengths])
        ids = torch.randint(config.vocab_size, mask.shape, generator=g)
        batch = {"input_ids": ids, "attention_mask": mask}
        kind = type(model).__name__
        if config.model_type == "bert":
            batch["token_type_ids"] = torch.randint(2, mask.shape, generator=g)
        if kind in ("GPT2LMHeadModel", "BertForMaskedLM", "BertForPreTraining"):
            batch["labels"] = ids.masked_fill(mask == 0, -100)
        if kind in ("BertForNextSentencePrediction", "BertForPreTraining"):
            batch["next_sentence_label"] = torch.tensor([0, 1, 1])
        file, out = self.scratch / "batch.json", self.scratch / "out.safetensors"
        file.write_text(json.dumps({name: rows.tolist() for name, rows in batch.items()}))
        self.genus("forward", folder, "--input", file, "--output", out, *(["--grad"] if "labels" in batch else []))
        got = load_file(out)
        if kind == "BertForNextSentencePrediction":
            batch["labels"] = batch.pop("next_sentence_label")
        expected = model(**batch)
        if "labels" in batch:
            expected.loss.backward()
        parameters = dict(model.named_parameters(remove_duplicate=False))
        worst = {}
        for name, value in got.items():
            if name.startswith("grad."):
                reference = parameters[name.removeprefix("grad.")].grad
            else:
                reference = expected[name].detach()
                if reference.ndim == 3:
                    reference = reference * mask[..., None]
            scale = max(reference.abs().max().item(), 1e-3)
            deviation = (value - reference).abs().max().item() / scale
            part = "gradients" if name.startswith("grad.") else name
            worst[part] = max(worst.get(part, 0.0), deviation)
        for part, deviation in worst.items():
            self.report(part, deviation <= TOLERANCE, f"off by {deviation:.1e} of the largest value")

    def tokenizer(self, folder, model):
        if not any((folder / name).exists() for name in ("tokenizer.json", "vocab.txt", "vocab.json")):
            print("       no tokenizer in this folder")
            return
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        self.report(f"{type(tokenizer).__name__} has {len(tokenizer)} tokens, the model {model.config.vocab_size}",
                    len(tokenizer) <= model.config.vocab_size)
        if not isinstance(model, transformers.GPT2LMHeadModel):
            return
        for text in TEXTS:
            ids = tokenizer(text, return_tensors="pt")["input_ids"]
            back = tokenizer.decode(ids[0], clean_up_tokenization_spaces=False)
            self.report("gives back", back == text, repr(text))
            new = min(8, model.config.max_position_embeddings - ids.shape[1])
            out = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=new,
                                 min_new_tokens=new, eos_token_id=None, pad_token_id=0)[0, ids.shape[1]:].tolist()
            printed = self.genus("generate", folder, "--prompt", text, "--greedy", "--ignore-eos", "--max-new-tokens", new,
                                 "--output-ids")
            self.report("generates the same", printed.split() == list(map(str, out)), f"{printed.strip()} {out}")

    def make(self):
        """Tiny models, a few steps on this project's own documents."""
        text = self.scratch / "text.txt"
        documents = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "ARCHITECTURE.md"]
        text.write_text("\n".join(d.read_text(encoding="utf-8") for d in documents if d.exists()), encoding="utf-8")
        size = ["--n-layers", 2, "--d-model", 36, "--n-heads", 3, "--d-ff", 50, "--n-ctx", 64, "--steps", 3,
                "--batch", 4, "--context", 32, "--lr", 1e-3, "--save-every", 3]
        folders = []
        for preset, tokenizer in [("gpt2", "train:bpe:400"), ("bert-base-uncased", "train:wordpiece:400")]:
            run = self.scratch / preset
            self.genus("train", preset, "--data", text, "--output", run, "--tokenizer", tokenizer, *size)
            folders.append(run / "checkpoint-3")
        return folders


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", type=Path)
    parser.add_argument("--genus", default=str(ROOT / "target" / "release" / "genus"), help="the binary")
    arguments = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as scratch:
        checker = Checker(arguments.genus, Path(scratch))
        for folder in arguments.folders or checker.make():
            checker.check(folder)
    print(f"{checker.failures} failures" if checker.failures else "all the same")
    return 1 if checker.failures else 0


if __name__ == "__main__":
    sys.exit(main())
