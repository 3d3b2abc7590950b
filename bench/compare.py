"""Times `genus` against PyTorch on the same weights, interleaved, and prints a table.

    python -m venv env && env/bin/pip install -r bench/requirements.txt
    cargo build --release
    env/bin/python bench/compare.py train prefill decode
    env/bin/python bench/compare.py encode --data DATA   # DATA holds glue/SST-2/dev.tsv and tok_bert (docs/data.md)
    env/bin/python bench/compare.py all --data DATA --json results.json

Each measurement is a process of its own, so that its peak memory is its own; the two sides alternate (PyTorch, genus,
PyTorch, genus, ...) for `--rounds` rounds. A round's figure is the median of its timed runs; the table shows the median
of the rounds with their range. `--only torch` or `--only genus` runs one side. Weights are made once, at random, in
`--work` (default target/bench). Peak memory: PyTorch's process high-water mark (interpreter and libraries included);
what `genus bench` reports for its workload. Ratio: PyTorch's time over genus's.

The peer is described in `torch_peer.py`. Machines are noisy: run nothing beside this.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent


class Workload:
    """One line of the table: what PyTorch gets (a spec of torch_peer.py) and what `genus bench` gets."""

    def __init__(self, name, model, spec, genus, precision="f32"):
        self.name, self.model, self.precision = name, model, precision
        self.spec = {**spec, "precision": precision}
        self.genus = genus


def workloads(options):
    """The table's lines by subcommand."""
    precisions = options.precision
    compiled = [False, True] if options.compile else [False]
    out = {"train": [], "encode": [], "decode": [], "prefill": [], "start": []}
    for precision in precisions:
        for model, batch, context, runs in [("gpt2", 4, 512, 1), ("gpt2", 2, 256, 3), ("gpt2-small-demo", 8, 128, 20)]:
            for c in compiled:
                out["train"].append(Workload(
                    f"train {model} {batch}x{context}" + (" compiled" if c else ""), model,
                    dict(kind="train", batch=batch, context=context, warmup=1 if runs < 20 else 3, runs=runs, compile=c),
                    ["train", "MODEL", "--batch", str(batch), "--context", str(context)], precision))
        for order in ("file", "sorted"):
            out["encode"].append(Workload(
                f"encode bert-base SST-2 dev, {order} order", "bert-base-uncased",
                dict(kind="encode", batch=32, order=order, warmup=0, runs=1),
                ["forward", "MODEL", "--lines", "LINES", "--batch", "32"], precision))
        for batch in options.decode_batch:
            out["decode"].append(Workload(
                f"decode gpt2 x{batch}", "gpt2",
                dict(kind="decode", batch=batch, prompt_tokens=16, new_tokens=64, warmup=1, runs=2),
                ["decode", "MODEL", "--batch", str(batch), "--prompt-tokens", "16", "--new-tokens", "64"], precision))
        out["prefill"].append(Workload(
            "prefill gpt2 1000 tokens", "gpt2",
            dict(kind="prefill", batch=1, prompt_tokens=1000, warmup=1, runs=3),
            ["prefill", "MODEL", "--prompt-tokens", "1000"], precision))
    out["start"].append(Workload(
        "start to first token, gpt2", "gpt2", dict(kind="start", ids="464 3290 318 257"), None))
    return out


def capture(command, environment):
    """Runs a command; its last line of standard output is one JSON object."""
    begin = time.perf_counter()
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    elapsed = time.perf_counter() - begin
    if done.returncode != 0:
        raise SystemExit(f"failed ({done.returncode}): {' '.join(map(str, command))}\n{done.stderr[-4000:]}")
    return done.stdout, elapsed


class Runner:
    def __init__(self, options):
        self.options = options
        self.work = Path(options.work)
        self.work.mkdir(parents=True, exist_ok=True)
        self.environment = {**os.environ, "OMP_NUM_THREADS": str(options.threads), "MKL_NUM_THREADS": str(options.threads)}
        self.lines = None

    def peer(self, spec):
        spec = {**spec, "threads": self.options.threads}
        out, elapsed = capture([sys.executable, HERE / "torch_peer.py", json.dumps(spec)], self.environment)
        return json.loads(out.strip().splitlines()[-1]), elapsed

    def folder(self, preset):
        path = self.work / preset
        if not (path / "model.safetensors").exists():
            print(f"making random weights in {path}", file=sys.stderr)
            self.peer(dict(kind="make", preset=preset, model=str(path)))
        if preset.startswith("bert"):
            data = self.data()
            if not (path / "vocab.txt").exists():
                (path / "vocab.txt").write_bytes((data / "tok_bert" / "google_uncased_en_vocab.txt").read_bytes())
                (path / "tokenizer_config.json").write_text(
                    json.dumps({"tokenizer_class": "BertTokenizer", "do_lower_case": True, "model_max_length": 512}))
        return path

    def data(self):
        if not self.options.data:
            raise SystemExit("encode needs --data (or GENUS_DATA): the folder of docs/data.md")
        return Path(self.options.data)

    def sentences(self):
        if self.lines is None:
            self.lines = self.work / "sst2-dev.txt"
            rows = (self.data() / "glue" / "SST-2" / "dev.tsv").read_text(encoding="utf-8").splitlines()[1:]
            self.lines.write_text("\n".join(row.split("\t")[0].strip() for row in rows if row.strip()) + "\n",
                                  encoding="utf-8")
        return self.lines

    def torch_round(self, load):
        spec = {**load.spec, "model": str(self.folder(load.model))}
        if spec["kind"] == "encode":
            spec["lines"] = str(self.sentences())
        result, elapsed = self.peer(spec)
        if spec["kind"] == "start":
            result["seconds"] = [elapsed]
        return result

    def genus_round(self, load):
        model = self.folder(load.model)
        binary = self.options.genus
        if load.spec["kind"] == "start":
            _, elapsed = capture([binary, "generate", model, "--ids", load.spec["ids"], "--greedy", "--max-new-tokens", "1",
                                  "--output-ids", "--threads", str(self.options.threads)], self.environment)
            return {"seconds": [elapsed]}
        words = {"MODEL": str(model), "LINES": str(self.sentences()) if "LINES" in load.genus else ""}
        command = [binary, "bench", *[words.get(a, a) for a in load.genus], "--runs", str(load.spec["runs"]),
                   "--warm-up", str(load.spec["warmup"]), "--threads", str(self.options.threads),
                   "--precision", load.precision, "--json", *self.options.genus_args.split()]
        out, _ = capture(command, self.environment)
        return json.loads(out.strip().splitlines()[-1])

    def compare(self, load):
        sides = {"torch": self.torch_round, "genus": self.genus_round}
        if self.options.only:
            sides = {self.options.only: sides[self.options.only]}
        rounds = {side: [] for side in sides}
        for i in range(self.options.rounds):
            for side, measure in sides.items():
                result = measure(load)
                rounds[side].append(result)
                seconds = statistics.median(result["seconds"])
                print(f"  round {i + 1} {side}: {seconds:.4g} s", file=sys.stderr)
        return {"workload": load.name, "precision": load.precision, **{s: summary(r) for s, r in rounds.items()}}


def summary(rounds):
    medians = [statistics.median(r["seconds"]) for r in rounds]
    out = {"seconds": statistics.median(medians), "min": min(medians), "max": max(medians), "rounds": rounds}
    memory = [r["peak_rss_bytes"] for r in rounds if "peak_rss_bytes" in r]
    if memory:
        out["peak_rss_bytes"] = max(memory)
    tokens = [r["tokens"] for r in rounds if "tokens" in r]
    if tokens:
        out["tokens_per_second"] = tokens[-1] / out["seconds"]
    elif "tokens_per_second" in rounds[0]:
        out["tokens_per_second"] = statistics.median(r["tokens_per_second"] for r in rounds)
    for key in ("flops_per_second", "bytes_per_second", "ceiling_flops_per_second", "ceiling_bytes_per_second"):
        if rounds[0].get(key):
            out[key] = statistics.median(r[key] for r in rounds)
    return out


def table(results):
    header = ["workload", "precision", "PyTorch s", "genus s", "ratio", "tokens/s", "memory PyTorch", "memory genus",
              "of peak"]
    rows = [header]
    for r in results:
        t, g = r.get("torch"), r.get("genus")
        rows.append([r["workload"], r["precision"], span(t), span(g), ratio(r["workload"], t, g),
                     " / ".join(f"{rate(s):.4g}" for s in (t, g) if s and rate(s)), memory(t), memory(g), share(g)])
    widths = [max(len(row[i]) for row in rows) for i in range(len(header))]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(row, widths)).rstrip() for row in rows)


def ratio(workload, t, g):
    """How many times faster genus is: by tokens a second where a run's length is each side's own affair, else by time."""
    if not (t and g):
        return "-"
    by_rate = workload.startswith(("train", "decode")) and rate(t) and rate(g)
    return f"{rate(g) / rate(t) if by_rate else t['seconds'] / g['seconds']:.2f}x"


def rate(side):
    return side.get("tokens_per_second") if side else None


def span(side):
    return f"{side['seconds']:.4g} [{side['min']:.4g}..{side['max']:.4g}]" if side else "-"


def memory(side):
    return f"{side['peak_rss_bytes'] / 1e9:.2f} GB" if side and "peak_rss_bytes" in side else "-"


def share(side):
    """The part of the machine's ceiling that genus reached, by its own report."""
    if not side:
        return "-"
    for kind in ("bytes", "flops"):
        got, most = side.get(f"{kind}_per_second"), side.get(f"ceiling_{kind}_per_second")
        if got and most and (kind == "bytes" or not side.get("bytes_per_second")):
            return f"{100 * got / most:.0f} % of {kind}/s"
    return "-"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = ["train", "encode", "decode", "prefill", "start"]
    parser.add_argument("workloads", nargs="+", choices=[*names, "all"])
    parser.add_argument("--match", default="", help="only lines of the table that contain this text")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--precision", nargs="+", default=["f32"], choices=["f32", "bf16"])
    parser.add_argument("--compile", action="store_true", help="also against torch.compile (training)")
    parser.add_argument("--decode-batch", nargs="+", type=int, default=[1])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--genus", default=str(ROOT / "target" / "release" / "genus"), help="the binary")
    parser.add_argument("--genus-args", default="", help="more flags for `genus bench`")
    parser.add_argument("--data", default=os.environ.get("GENUS_DATA"))
    parser.add_argument("--work", default=str(ROOT / "target" / "bench"), help="where the random weights go")
    parser.add_argument("--only", choices=["torch", "genus"])
    parser.add_argument("--json", metavar="FILE", help="write everything measured, every run of every round")
    options = parser.parse_args()
    if options.only != "torch" and not Path(options.genus).exists():
        raise SystemExit(f"no binary at {options.genus}: cargo build --release, or --genus PATH")
    runner = Runner(options)
    wanted = names if "all" in options.workloads else options.workloads
    results = []
    for name in wanted:
        for load in workloads(options)[name]:
            if options.match in load.name:
                print(load.name, load.precision, file=sys.stderr)
                results.append(runner.compare(load))
                if options.json:
                    Path(options.json).write_text(json.dumps(results, indent=1) + "\n")
    print(table(results))


if __name__ == "__main__":
    main()
