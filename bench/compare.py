"""Times `genus` against PyTorch (and ONNX Runtime, and Python's `tokenizers`) on the same weights and data, and prints a table.

    python -m venv env && env/bin/pip install -r bench/requirements.txt
    cargo build --release
    env/bin/python bench/compare.py train prefill decode start
    env/bin/python bench/compare.py classify encode tokenize --data DATA   # DATA holds the sets of docs/data.md
    env/bin/python bench/compare.py train-pairs translate --data DATA --translator MODEL    # Multi30k; MODEL may be left out
    env/bin/python bench/compare.py all --data DATA --precision f32 bf16 --compile --onnx --decode-batch 1 16

Each measurement is a process of its own, so that its peak memory is its own; the sides of a workload alternate (peers, genus,
peers, genus, ...) for `--rounds` rounds. A round's figure is the median of its timed runs; the table shows the median of the
rounds with their range. The start of a process is measured the second time of two, so that its files and memory are warm.
Weights are made once, at random, in `--work` (default target/bench).

Rounds are added to those in `--json FILE` (default results.json in `--work`), so a long comparison can be taken in pieces:
`--list` names the workloads, `--match TEXT` picks some, `--sides genus torch` some of their sides, `--rounds 1` one round each
(under 90 seconds a side). `--forget` drops the picked workloads' earlier rounds first (after a change of the program), and
`table` alone prints what there is.

Ratio: the peer's time over genus's, for the same tokens or sentences. Memory: PyTorch's process high-water mark (interpreter
and libraries included); what `genus bench` reports for its workload. `wanted` is the project's aim on a machine with AVX-512.
The peers are described in `torch_peer.py` and `translation_peer.py`. Random weights end no translation, so theirs have 16 tokens
each, about what Multi30k's have, or as many as their source; with `--translator`, a trained model translates at natural lengths, too. Machines are noisy: run nothing beside this.
"""

import argparse
import gzip
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
NAMES = ["train", "classify", "encode", "decode", "prefill", "start", "tokenize", "train-pairs", "translate"]
# Kinds that translation_peer.py runs.
TRANSLATION = ["make_marian", "train_pairs", "translate", "ctranslate2", "convert"]


class Workload:
    """One thing to measure: what `genus` gets, and each peer's spec (of torch_peer.py) with the ratio that is wanted."""

    def __init__(self, kind, name, model, genus, peers, precision="f32", runs=1, warmup=0):
        self.kind, self.name, self.model, self.precision = kind, name, model, precision
        self.genus, self.peers, self.runs, self.warmup = genus, peers, runs, warmup

    @property
    def key(self):
        return f"{self.name} {self.precision}"


def workloads(options):
    """All that the options ask for."""
    out = []
    for precision in options.precision:
        f32 = precision == "f32"

        def add(kind, name, model, genus, peers, runs=1, warmup=0):
            specs = {}
            for label, (spec, wanted) in peers.items():
                specs[label] = ({"runs": runs, "warmup": warmup, **spec, "precision": precision}, wanted)
            out.append(Workload(kind, name, model, genus, specs, precision, runs, warmup))

        for model, batch, context, runs in [("gpt2", 4, 512, 2), ("gpt2", 2, 256, 3), ("gpt2-small-demo", 8, 128, 40)]:
            spec = dict(kind="train", batch=batch, context=context)
            peers = {"torch": (spec, 1.6 if f32 else None)}
            if options.compile:
                peers["compiled"] = ({**spec, "compile": True}, (1.3 if f32 else 1.35) if model == "gpt2" else None)
            add("train", f"train {model} {batch}x{context}", model,
                ["train", "MODEL", "--batch", str(batch), "--context", str(context)], peers, runs, 2 if runs < 10 else 5)
        # One run takes the first sentences of the training set, in file order; the peer pads each batch to its longest.
        spec = dict(kind="classify", batch=32, sentences=192, runs=1)
        peers = {"torch": (spec, 3 if f32 else None)}
        add("classify", "classify bert-base SST-2 train", "bert-base-classifier",
            ["train", "MODEL", "--task", "sequence-classification", "--lines", "LABELLED", "--batch", "32"], peers, 3, 1)
        encode = dict(kind="encode", batch=32)
        peers = {"torch (file order)": ({**encode, "order": "file"}, 2.2 if f32 else None),
                 "torch (sorted)": ({**encode, "order": "sorted"}, 1.15 if f32 else None)}
        if options.onnx and f32:
            peers["onnxruntime (sorted)"] = ({**encode, "kind": "onnx", "order": "sorted"}, 1.0)
        add("encode", "encode bert-base SST-2 dev", "bert-base-uncased",
            ["forward", "MODEL", "--lines", "LINES"], peers)
        for batch in options.decode_batch:
            spec = dict(kind="decode", batch=batch, prompt_tokens=16, new_tokens=64)
            add("decode", f"decode gpt2 x{batch}", "gpt2",
                ["decode", "MODEL", "--batch", str(batch), "--prompt-tokens", "16", "--new-tokens", "64"],
                {"torch": (spec, 2.5 if batch == 1 else None)}, 2, 1)
        spec = dict(kind="train_pairs", batch_tokens=4096, batches=1)
        add("train-pairs", "train base Multi30k 4096 tokens", "marian-base",
            ["train", "MODEL", "--source", "SOURCE", "--target", "TARGET", "--batch-tokens", "4096", "--batches", "1"],
            {"torch": (spec, 1.5 if f32 else None)}, 1, 1)
        if f32:
            spec = dict(kind="translate", beams=4, batch=64, length_penalty=0.6)
            fixed = {**spec, "first": 200, "new_tokens": 16, "order": "sorted"}
            alike = {**spec, "first": 200, "as_source": True}
            sides = lambda spec: {"transformers (file order)": (spec, 3), "transformers (sorted)": ({**spec, "order": "sorted"}, 3)}
            flags = ["translate", "MODEL", "--source", "TEST", "--beams", "4", "--batch", "64", "--length-penalty", "0.6"]
            add("translate", "translate base 200 lines 4 beams", "marian-base",
                [*flags, "--first", "200", "--max-new-tokens", "16", "--to-the-full"],
                {"transformers": (fixed, 3), "ctranslate2": ({**fixed, "kind": "ctranslate2"}, 1)})
            add("translate", "translate base 200 lines lengths of the source", "marian-base",
                [*flags, "--first", "200", "--beyond", "0", "--to-the-full"], sides(alike))
            if options.translator:
                add("translate", "translate Multi30k trained", options.translator, flags, sides(spec))
        add("prefill", "prefill gpt2 1000", "gpt2", ["prefill", "MODEL", "--prompt-tokens", "1000"],
            {"torch": (dict(kind="prefill", batch=1, prompt_tokens=1000), 1.2 if f32 else None)}, 3, 1)
    out.append(Workload("start", "start to first token gpt2", "gpt2", None,
                        {"torch": (dict(kind="start", ids="464 3290 318 257"), 10)}))
    for name, model in [("GPT-2 BPE", "gpt2-tokenizer"), ("WordPiece", "bert-tokenizer")]:
        out.append(Workload("tokenize", f"tokenize 100 MB {name}", model, ["tokenize", "MODEL", "--lines", "CORPUS"],
                            {"tokenizers": (dict(kind="tokenize", runs=1, warmup=0), 1.0)}))
    return out


def capture(command, environment):
    """Runs a command; its last line of standard output is one JSON object."""
    begin = time.perf_counter()
    done = subprocess.run([str(word) for word in command], env=environment, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, text=True)
    elapsed = time.perf_counter() - begin
    if done.returncode != 0:
        raise SystemExit(f"failed ({done.returncode}): {' '.join(map(str, command))}\n{done.stderr[-4000:]}")
    return done.stdout, elapsed


class Runner:
    def __init__(self, options):
        self.options = options
        self.work = Path(options.work)
        self.work.mkdir(parents=True, exist_ok=True)
        threads = str(options.threads)
        self.environment = {**os.environ, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads,
                            "RAYON_NUM_THREADS": threads, "TOKENIZERS_PARALLELISM": "true"}
        if options.simd == "avx2":
            self.environment |= {"GENUS_SIMD": "avx2", "ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2",
                                 "MKL_ENABLE_INSTRUCTIONS": "AVX2"}

    def peer(self, spec):
        spec = {**spec, "threads": self.options.threads}
        script = HERE / ("translation_peer.py" if spec["kind"] in TRANSLATION else "torch_peer.py")
        out, elapsed = capture([sys.executable, script, json.dumps(spec)], self.environment)
        return json.loads(out.strip().splitlines()[-1]), elapsed

    def data(self):
        if not self.options.data:
            raise SystemExit("classify, encode, tokenize, train-pairs and translate need --data (or GENUS_DATA): the folder of docs/data.md")
        return Path(self.options.data)

    def folder(self, name):
        """A model's folder with random weights, or a tokenizer's."""
        path = self.work / name
        if name == self.options.translator:
            return Path(name)
        if name == "marian-base":
            if not (path / "model.safetensors").exists():
                source, target = (str(self.multi30k(f"train.{side}")) for side in ("en", "de"))
                self.peer(dict(kind="make_marian", model=str(path), source=source, target=target))
                self.peer(dict(kind="convert", model=str(path)))
            return path
        if name.endswith("-tokenizer"):
            return self.tokenizer(name, path)
        if not (path / "model.safetensors").exists():
            print(f"making random weights in {path}", file=sys.stderr)
            self.peer(dict(kind="make", preset=name, model=str(path)))
        if name.startswith("bert"):
            self.wordpiece(path)
        return path

    def wordpiece(self, path):
        if not (path / "vocab.txt").exists():
            path.mkdir(parents=True, exist_ok=True)
            (path / "vocab.txt").write_bytes((self.data() / "tok_bert" / "google_uncased_en_vocab.txt").read_bytes())
            (path / "tokenizer_config.json").write_text(
                json.dumps({"tokenizer_class": "BertTokenizer", "do_lower_case": True, "model_max_length": 512}))

    def tokenizer(self, name, path):
        """A folder with `tokenizer.json`, which both sides read."""
        if not (path / "tokenizer.json").exists():
            path.mkdir(parents=True, exist_ok=True)
            if name.startswith("gpt2"):
                (path / "tokenizer.json").write_bytes((self.data() / "tok_gpt2" / "gpt2_tokenizer.json").read_bytes())
            else:
                self.wordpiece(path)
                self.peer(dict(kind="wordpiece", model=str(path)))
        return path

    def sentences(self):
        """The sentences of the SST-2 development set, one a line."""
        lines = self.work / "sst2-dev.txt"
        if not lines.exists():
            rows = (self.data() / "glue" / "SST-2" / "dev.tsv").read_text(encoding="utf-8").splitlines()[1:]
            lines.write_text("\n".join(row.split("\t")[0].strip() for row in rows if row.strip()) + "\n", encoding="utf-8")
        return lines

    def labelled(self, count=192):
        """The first sentences of the SST-2 training set, each with its label behind a tab."""
        lines = self.work / f"sst2-train-{count}.tsv"
        if not lines.exists():
            rows = (self.data() / "glue" / "SST-2" / "train.tsv").read_text(encoding="utf-8").splitlines()[1:count + 1]
            lines.write_text("".join("\t".join(f.strip() for f in row.split("\t")) + "\n" for row in rows), encoding="utf-8")
        return lines

    def multi30k(self, name):
        path = self.work / f"multi30k-{name}"
        if not path.exists():
            path.write_bytes(gzip.decompress((self.data() / "multi30k" / f"{name}.gz").read_bytes()))
        return path

    def corpus(self):
        """The plain text of the data folder, repeated to 100 MB; its lines are the texts."""
        path = self.work / "plain-100mb.txt"
        if not path.exists():
            parts = [self.data() / p for p in ("tinyshakespeare/input.txt", "wikitext2/valid.txt", "wikitext2/test.txt",
                                               "tinystories_sample/tinystories.txt", "uer_zh_lm/CLUECorpusSmall_sampled.txt")]
            lines = [line for part in parts for line in part.read_text(encoding="utf-8").split("\n") if line.strip()]
            text = ("\n".join(lines) + "\n").encode()
            whole, rest = divmod(100_000_000, len(text))
            path.write_bytes(text * whole + text[:text.rfind(b"\n", 0, rest) + 1])
        return path

    def torch_round(self, load, label):
        spec = {**load.peers[label][0], "model": str(self.folder(load.model))}
        if spec["kind"] in ("encode", "onnx"):
            spec["lines"] = str(self.sentences())
        if spec["kind"] == "classify":
            spec["lines"] = str(self.labelled(spec["sentences"]))
        if spec["kind"] == "train_pairs":
            spec |= {"source": str(self.multi30k("train.en")), "target": str(self.multi30k("train.de"))}
        if spec["kind"] in ("translate", "ctranslate2"):
            spec["lines"] = str(self.multi30k("test_2016_flickr.en"))
        if spec["kind"] == "onnx":
            spec["onnx"] = str(self.work / "bert-base-uncased.onnx")
            if not Path(spec["onnx"]).exists():
                print("exporting to ONNX", file=sys.stderr)
                self.peer({**spec, "kind": "onnx_make"})
        if spec["kind"] == "tokenize":
            spec["lines"] = str(self.corpus())
        result, _ = self.peer(spec)
        if spec["kind"] == "start":
            result["seconds"] = [self.peer(spec)[1]]
        return result

    def genus_round(self, load):
        model, binary, threads = self.folder(load.model), self.options.genus, str(self.options.threads)
        if load.kind == "start":
            ids = load.peers["torch"][0]["ids"]
            command = [binary, "generate", model, "--ids", ids, "--greedy", "--max-new-tokens", "1", "--output-ids",
                       "--threads", threads]
            capture(command, self.environment)
            return {"seconds": [capture(command, self.environment)[1]]}
        files = {"MODEL": lambda: model, "LINES": self.sentences, "LABELLED": self.labelled, "CORPUS": self.corpus}
        files |= {"SOURCE": lambda: self.multi30k("train.en"), "TARGET": lambda: self.multi30k("train.de"),
                  "TEST": lambda: self.multi30k("test_2016_flickr.en")}
        command = [binary, "bench", *[files[a]() if a in files else a for a in load.genus], "--runs", str(load.runs),
                   "--warm-up", str(load.warmup), "--threads", threads, "--json", *self.options.genus_args.split()]
        if load.precision != "f32":
            command += ["--precision", load.precision]
        out, _ = capture(command, self.environment)
        return json.loads(out.strip().splitlines()[-1])

    def round(self, load, rounds):
        """One round of every side that is wanted; `rounds` maps sides to what was measured before."""
        wanted = self.options.sides
        for side in [*load.peers, "genus"]:
            if wanted and not any(side == w or side.startswith(w + " ") for w in wanted):
                continue
            result = self.genus_round(load) if side == "genus" else self.torch_round(load, side)
            result["taken"] = time.strftime("%Y-%m-%dT%H:%M:%S")
            rounds.setdefault(side, []).append(result)
            print(f"  {side}: {statistics.median(result['seconds']):.4g} s", file=sys.stderr)


def summary(rounds):
    if not rounds:
        return None
    medians = [statistics.median(r["seconds"]) for r in rounds]
    out = {"seconds": statistics.median(medians), "min": min(medians), "max": max(medians), "rounds": len(rounds)}
    memory = [r["peak_rss_bytes"] for r in rounds if r.get("peak_rss_bytes")]
    if memory:
        out["memory"] = max(memory)
    if "tokens" in rounds[-1]:
        out["rate"] = rounds[-1]["tokens"] / out["seconds"]
    elif "tokens_per_second" in rounds[-1]:
        out["rate"] = statistics.median(r["tokens_per_second"] for r in rounds)
    for key in ("flops_per_second", "bytes_per_second", "ceiling_flops_per_second", "ceiling_bytes_per_second"):
        if rounds[-1].get(key):
            out[key] = statistics.median(r[key] for r in rounds if r.get(key))
    return out


def table(results, loads):
    header = ["workload", "", "peer", "peer s", "genus s", "ratio", "wanted", "tokens/s", "memory", "of peak", "rounds"]
    rows = [header]
    wanted = {(load.key, label): ratio for load in loads for label, (_, ratio) in load.peers.items()}
    for key, entry in results.items():
        genus = summary(entry["sides"].get("genus"))
        labels = [side for side in entry["sides"] if side != "genus"] or [None]
        for label in labels:
            peer = summary(entry["sides"].get(label))
            both = [s for s in (peer, genus) if s]
            rows.append([
                entry["name"], entry["precision"], label or "-", span(peer), span(genus), ratio(entry["kind"], peer, genus),
                f"{wanted[key, label]}" if wanted.get((key, label)) else "-",
                " / ".join(f"{s['rate']:.4g}" for s in both if "rate" in s) or "-",
                " / ".join(f"{s['memory'] / 1e9:.2f}" for s in both if "memory" in s) + " GB" if genus or peer else "-",
                share(genus), "/".join(str(s["rounds"]) for s in both)])
    for precision in ("f32", "bf16"):
        one, many = (summary(results.get(f"decode gpt2 x{n} {precision}", {"sides": {}})["sides"].get("genus")) for n in (1, 16))
        if one and many:
            rows.append(["decode gpt2 x16 over x1", precision, "genus x1", span(one), span(many),
                         f"{many['rate'] / one['rate']:.2f}", "5", f"{one['rate']:.4g} / {many['rate']:.4g}", "-", "-", "-"])
    widths = [max(len(row[i]) for row in rows) for i in range(len(header))]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(row, widths)).rstrip() for row in rows)


def ratio(kind, peer, genus):
    """How many times faster genus is: by tokens a second where a run's length is each side's own affair, else by time."""
    if not (peer and genus):
        return "-"
    by_rate = kind in ("train", "decode", "train-pairs") and "rate" in peer and "rate" in genus
    return f"{genus['rate'] / peer['rate'] if by_rate else peer['seconds'] / genus['seconds']:.2f}"


def span(side):
    return f"{side['seconds']:.4g} [{side['min']:.4g}..{side['max']:.4g}]" if side else "-"


def share(side):
    """The part of the machine's ceiling that genus reached, by its own report: of reading memory where weights are what is read."""
    for kind in ("bytes", "flops"):
        got, most = (side or {}).get(f"{kind}_per_second"), (side or {}).get(f"ceiling_{kind}_per_second")
        if got and most and (kind == "flops" or side.get("flops_per_second")):
            return f"{100 * got / most:.0f} % of {kind}/s"
    return "-"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workloads", nargs="*", help=f"what to measure: {', '.join(NAMES)}, all; or table")
    parser.add_argument("--match", default="", help="only workloads whose name and precision contain this text")
    parser.add_argument("--sides", nargs="+", metavar="SIDE", help="only these: genus, torch, compiled, onnxruntime, tokenizers, transformers, ctranslate2")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--forget", action="store_true", help="drop earlier rounds of the sides that are measured")
    parser.add_argument("--list", action="store_true", help="name the workloads and stop")
    parser.add_argument("--precision", nargs="+", default=["f32"], choices=["f32", "bf16"])
    parser.add_argument("--compile", action="store_true", help="also against torch.compile (training)")
    parser.add_argument("--onnx", action="store_true", help="also against ONNX Runtime (encode)")
    parser.add_argument("--decode-batch", nargs="+", type=int, default=[1, 16])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--simd", choices=["native", "avx2"], default="native",
                        help="avx2: both sides without AVX-512, by their own switches; keep those rounds in a --json of their own")
    parser.add_argument("--genus", default=str(ROOT / "target" / "release" / "genus"), help="the binary")
    parser.add_argument("--genus-args", default="", help="more flags for `genus bench`")
    parser.add_argument("--data", default=os.environ.get("GENUS_DATA"))
    parser.add_argument("--translator", metavar="MODEL", help="a trained model's folder that translates English, for translate")
    parser.add_argument("--work", default=str(ROOT / "target" / "bench"), help="where the random weights go")
    parser.add_argument("--json", metavar="FILE", help="where the rounds are kept (default: results.json in --work)")
    options = parser.parse_args()
    unknown = set(options.workloads) - {*NAMES, "all", "table"}
    if unknown or not (options.workloads or options.list):
        parser.error(f"workloads: found {', '.join(unknown) or 'none'}, expected {', '.join(NAMES)}, all or table")
    kinds = NAMES if "all" in options.workloads else options.workloads
    loads = workloads(options)
    chosen = [load for load in loads if load.kind in kinds and options.match in load.key]
    if options.list:
        print("\n".join(f"{load.kind:10}{load.key}: {', '.join([*load.peers, 'genus'])}" for load in loads))
        return
    file = Path(options.json or Path(options.work) / "results.json")
    results = json.loads(file.read_text()) if file.exists() else {}
    if chosen:
        if options.sides != ["torch"] and not Path(options.genus).exists():
            raise SystemExit(f"no binary at {options.genus}: cargo build --release, or --genus PATH")
        runner = Runner(options)
    for load in chosen:
        entry = results.setdefault(load.key, {"kind": load.kind, "name": load.name, "precision": load.precision, "sides": {}})
        if options.forget:
            entry["sides"] = {k: v for k, v in entry["sides"].items() if options.sides and k not in options.sides}
        for i in range(options.rounds):
            print(f"{load.key}, round {i + 1}", file=sys.stderr)
            runner.round(load, entry["sides"])
            file.write_text(json.dumps(results, indent=1) + "\n")
    print(table(results, loads))


if __name__ == "__main__":
    main()
