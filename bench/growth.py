"""How a training step grows: with the batch, the context and the layers. Measures with `genus bench train` and draws PNG plots.

    python -m venv env && env/bin/pip install -r bench/requirements.txt
    cargo build --release
    env/bin/python bench/growth.py                 # measures (about two minutes) and draws docs/figures/growth-*.png
    env/bin/python bench/growth.py --draw          # draws again what was measured

The model is small so that it is quick: 256 wide, 4 heads, a vocabulary of 4,096, two layers unless it is the layers that grow, and a
context of 8,192 at most. What is expected is drawn beside what is measured: attention grows with the square of the context, all
else in proportion to tokens and layers, memory in proportion to both. docs/growth.md explains the plots.
"""

import argparse
import json
import statistics
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SWEEPS = {
    "batch": [dict(batch=b, context=512, layers=2) for b in (1, 2, 4, 8, 16, 32)],
    "context": [dict(batch=1, context=c, layers=2) for c in (512, 1024, 2048, 4096, 8192)],
    "layers": [dict(batch=4, context=512, layers=n) for n in (1, 2, 4, 8, 16)],
}
NAMES = {"batch": "sequences of 512 tokens", "context": "tokens of one sequence", "layers": "layers, 4 x 512 tokens"}
ATTENTION = ("attention forward", "attention backward")


def measure(genus, threads, point):
    """One point: seconds of a step, those of attention, and peak memory."""
    command = [genus, "bench", "train", "gpt2", "--d-model", "256", "--n-heads", "4", "--vocab-size", "4096", "--n-ctx", "8192",
               "--n-layers", point["layers"], "--batch", point["batch"], "--context", point["context"],
               "--runs", "5", "--warm-up", "2", "--threads", threads, "--json"]
    done = subprocess.run([str(word) for word in command], stdout=subprocess.PIPE, text=True, check=True)
    report = json.loads(done.stdout)
    attention = sum(o["seconds"] for o in report["operations"] if o["name"] in ATTENTION)
    mean = statistics.mean(report["seconds"])
    seconds = statistics.median(report["seconds"])
    return {**point, "seconds": seconds, "least": min(report["seconds"]), "most": max(report["seconds"]),
            "attention": seconds * attention / mean, "memory": report["peak_rss_bytes"],
            "kernel_level": report["kernel_level"], "threads": report["threads"]}


def line(xs, ys):
    """The least-squares line through the points, each weighted by one over its height, so that small points count as well."""
    weights = [1 / y**2 for y in ys]
    total = sum(weights)
    x0 = sum(w * x for w, x in zip(weights, xs)) / total
    y0 = sum(w * y for w, y in zip(weights, ys)) / total
    slope = (sum(w * (x - x0) * (y - y0) for w, x, y in zip(weights, xs, ys))
             / sum(w * (x - x0) ** 2 for w, x in zip(weights, xs)))
    return y0 - slope * x0, slope


def draw(sweep, points, folder):
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    xs = [p[sweep] for p in points]
    fine = [xs[0] * (xs[-1] / xs[0]) ** (i / 60) for i in range(61)]
    figure, (time, memory) = plt.subplots(1, 2, figsize=(9, 3.6))

    def series(axes, ys, color, label):
        axes.plot(xs, ys, "o", color=color, label=label)

    def expected(axes, f, color, label):
        axes.plot(fine, [f(x) for x in fine], "-", color=color, alpha=0.55, linewidth=1.4, label=label)

    rest = [p["seconds"] - p["attention"] for p in points]
    a, b = line(xs, rest)
    attention = [p["attention"] for p in points]
    series(time, [p["seconds"] for p in points], "black", "whole step")
    series(time, rest, "tab:blue", "all but attention")
    expected(time, lambda x: a + b * x, "tab:blue", "a + b x")
    series(time, attention, "tab:red", "attention")
    if sweep == "context":
        # A causal triangle holds x (x + 1) / 2 pairs; the speed is the median of the longer sequences'.
        c = statistics.median(y / (x * (x + 1)) for x, y in zip(xs[1:], attention[1:]))
        expected(time, lambda x: c * x * (x + 1), "tab:red", "c x (x + 1)")
    else:
        d, e = line(xs, attention)
        expected(time, lambda x: d + e * x, "tab:red", "d + e x")
    time.set(xscale="log", yscale="log", xlabel=NAMES[sweep], ylabel="seconds a step")
    held = [p["memory"] / 1e6 for p in points]
    base, each = line(xs, held)
    series(memory, held, "black", "peak")
    expected(memory, lambda x: base + each * x, "tab:blue", f"{base:.0f} + {each:.3g} x")
    memory.set(xlabel=NAMES[sweep], ylabel="peak memory, MB", ylim=(0, None))
    for axes in (time, memory):
        axes.set_xticks(xs, [str(x) for x in xs])
        axes.minorticks_off()
        axes.grid(alpha=0.25)
        axes.legend(fontsize=8, frameon=False)
    if sweep == "context":
        memory.set_xticks(xs[2:] if len(xs) > 3 else xs)
    elif len(xs) > 3:
        memory.set_xticks(xs[1:])
    figure.tight_layout()
    path = folder / f"growth-{sweep}.png"
    figure.savefig(path, dpi=100, metadata={"Software": None})
    plt.close(figure)
    return path


def table(sweep, points):
    """The points as a Markdown table."""
    rows = [f"| {sweep} | step, s | attention, s | all else, s | peak memory, MB |", "|---|---|---|---|---|"]
    for p in points:
        rows.append(f"| {p[sweep]} | {p['seconds']:.4f} [{p['least']:.4f}..{p['most']:.4f}] | {p['attention']:.4f} | "
                    f"{p['seconds'] - p['attention']:.4f} | {p['memory'] / 1e6:.0f} |")
    return "\n".join(rows)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sweeps", nargs="*", default=list(SWEEPS), help=f"which: {', '.join(SWEEPS)} (default: all)")
    parser.add_argument("--genus", default=str(ROOT / "target" / "release" / "genus"), help="the binary")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--results", default=str(ROOT / "target" / "bench" / "growth.json"), help="where the figures are kept")
    parser.add_argument("--figures", default=str(ROOT / "docs" / "figures"), help="where the plots go")
    parser.add_argument("--draw", action="store_true", help="only draw what was measured before")
    options = parser.parse_args()
    unknown = set(options.sweeps) - set(SWEEPS)
    if unknown:
        parser.error(f"found {', '.join(sorted(unknown))}, expected some of {', '.join(SWEEPS)}")
    file = Path(options.results)
    results = json.loads(file.read_text()) if file.exists() else {}
    if not options.draw:
        file.parent.mkdir(parents=True, exist_ok=True)
        for sweep in options.sweeps:
            results[sweep] = [measure(options.genus, options.threads, point) for point in SWEEPS[sweep]]
            file.write_text(json.dumps(results, indent=1) + "\n")
    folder = Path(options.figures)
    folder.mkdir(parents=True, exist_ok=True)
    for sweep in options.sweeps:
        if sweep not in results:
            parser.error(f"{sweep} was not measured yet: leave --draw out")
        print(draw(sweep, results[sweep], folder))
        print(table(sweep, results[sweep]))


if __name__ == "__main__":
    main()
