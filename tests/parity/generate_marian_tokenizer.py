"""Makes the fixtures of Marian's tokenizers from `sentencepiece` and `transformers`' `MarianTokenizer`.

    env/bin/pip install -r requirements.txt sentencepiece==0.2.3
    env/bin/python generate_marian_tokenizer.py

Writes `crates/text/tests/fixtures/tiny_marian`: a folder as Marian's are (two small SentencePiece models that differ in
all that may differ, a shared vocabulary that lacks some of their pieces) and `expected.json` beside it. The models learn
from the sentences below, which were written for this. With `--model FILE`, texts are also encoded with a SentencePiece
model of one's own; `--lines SOURCE TARGET` prints ids of parallel files with the tokenizer of `--folder`, to compare with
`genus tokenizer encode`.
"""

import argparse
import io
import json
import random
from pathlib import Path

import sentencepiece
from transformers import MarianTokenizer

HERE = Path(__file__).resolve().parent
OUT = HERE.parent.parent / "crates" / "text" / "tests" / "fixtures" / "tiny_marian"

SOURCE = """
A small boat lies on the quiet lake. Two children carry a red ladder across the yard. The old baker opens his shop before the sun rises.
Nobody knows who painted the wooden door. She reads a long letter and smiles. The train to the coast leaves at 7:45 from platform 3.
Three black cats sleep under the warm stove. A man in a green coat waits for the bus. The teacher writes the answer on the board.
We walked through the forest until it became dark. Please close the window, it is cold outside. Snow fell during the whole night.
The dog runs after the ball and brings it back. My sister plays the violin better than I do. They built a bridge over the narrow river.
How many apples are in the basket? There are 12 apples and 30 pears. He has not been here since 1998. It costs 4.50 or 5% more.
Writers, readers and printers met in the library. The workers are working; the singers are singing; the painters are painting.
An unhappy king lived in an unusual castle. Restart the machine and rewrite the message. The fearless sailors returned fearlessly.
Water, bread and cheese were all that they had. Do you remember the name of that street? "Yes," she said, "I do."
The market opens on Monday and closes on Saturday. A bird sings in the tree near the house. The river flows slowly to the sea.
"""

TARGET = """
Ein kleines Boot liegt auf dem ruhigen See. Zwei Kinder tragen eine rote Leiter über den Hof. Der alte Bäcker öffnet seinen Laden, bevor die Sonne aufgeht.
Niemand weiß, wer die hölzerne Tür bemalt hat. Sie liest einen langen Brief und lächelt. Der Zug an die Küste fährt um 7:45 von Gleis 3 ab.
Drei schwarze Katzen schlafen unter dem warmen Ofen. Ein Mann in einem grünen Mantel wartet auf den Bus. Die Lehrerin schreibt die Antwort an die Tafel.
Wir gingen durch den Wald, bis es dunkel wurde. Bitte schließe das Fenster, draußen ist es kalt. Es schneite die ganze Nacht.
Der Hund läuft dem Ball nach und bringt ihn zurück. Meine Schwester spielt besser Geige als ich. Sie bauten eine Brücke über den schmalen Fluss.
Wie viele Äpfel sind im Korb? Es sind 12 Äpfel und 30 Birnen. Er ist seit 1998 nicht mehr hier gewesen. Es kostet 4,50 oder 5% mehr.
Schreiber, Leser und Drucker trafen sich in der Bücherei. Die Arbeiter arbeiten, die Sänger singen, die Maler malen.
Ein unglücklicher König lebte in einem ungewöhnlichen Schloss. Starte die Maschine neu und schreibe die Nachricht um.
Wasser, Brot und Käse waren alles, was sie hatten. Erinnerst du dich an den Namen der Straße? „Ja“, sagte sie, „das tue ich.“
Der Markt öffnet am Montag und schließt am Samstag. Ein Vogel singt im Baum beim Haus. Der Fluss fließt langsam zum Meer.
"""

# What becomes what: more than one character to one, one to many, nothing, a beginning of another rule.
RULES = {"\ufb01": "fi", "\u2026": "...", "\u00a0": " ", "\u3000": " ", "\t": " ", "\n": " ", "\u200b": "", "a\u0308": "\u00e4",
         "\uff21": "A", "\u00bd": "1/2", "\u00a8": " \u0308", "<<<": "less", "e\u0301\u0301": "é", "\u2028": "  "}

TEXTS = [
    "", " ", "A small boat.", "The quiet children carry bread, water and cheese.", "  two   spaces  ", "tab\tand\nline",
    "Drei Äpfel über der Küste", "Drei A\u0308pfel, ka\u0308lter", "\ufb01sh and \ufb01re\u2026", "\uff21pple \u00bd price", "zero\u200bwidth\u200b ",
    "\u00a0no\u00a0break\u3000wide\u2028line", ">>de<< The old baker", ">>de<<The old baker", ">>fr<< a boat", ">>xx<< a boat",
    " >>de<< a boat", "a >>de<< boat", ">>de<<", ">>de a boat", ">><<", ">>de<<</s>", "the end</s>", "the</s>end </s> </s>", "<unk> and <pad>", "<s> <sep> x",
    "a<sep>b <sep> c<sep>", "Tower of \u5854 \u5854\u5854 snow\u2603man", "\U0001f600 smile \U0001f600\U0001f600", "<<<", "<<", "<<<<", "\u00a8x", "e\u0301\u0301 e\u0301",
    "\u2581under\u2581lined", "a\u2581", "12 Äpfel und 30 Birnen kosten 4,50", "unhappily rewriting painters", "AAAA bbbb QQQQ", "\u0000nul", "\u0085next\u001cline",
    "antidisestablishmentarianism " * 4, "Schlafwagenschaffner fährt\r\nheim", "\u202eright to left \u05d0\u05d1", "\U0001f468\u200d\U0001f469\u200d\U0001f467 family", "xyz" * 50,
]


def rules_file(folder):
    path = folder / "rules.tsv"
    line = lambda s: " ".join(f"{ord(c):X}" for c in s)
    path.write_text("".join(f"{line(a)}\t{line(b)}\n" for a, b in sorted(RULES.items())), encoding="utf-8")
    return path


def learn(text, **options):
    model = io.BytesIO()
    sentences = [s.strip() + "." for s in text.replace("\n", " ").split(".") if s.strip()]
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(sentences), model_writer=model, minloglevel=2,
                                             num_threads=1, **options)
    return model.getvalue()


def make(folder):
    folder.mkdir(parents=True, exist_ok=True)
    rules = rules_file(folder)
    source = learn(SOURCE, vocab_size=200, normalization_rule_tsv=str(rules), user_defined_symbols=["<sep>"],
                   character_coverage=1.0)
    rules.unlink()
    target = learn(TARGET, vocab_size=445, normalization_rule_name="identity", byte_fallback=True, character_coverage=1.0)
    for name, bytes_ in (("source.spm", source), ("target.spm", target)):
        (folder / name).write_bytes(bytes_)
    pieces = set()
    for bytes_ in (source, target):
        model = sentencepiece.SentencePieceProcessor(model_proto=bytes_)
        pieces |= {model.id_to_piece(i) for i in range(model.get_piece_size())}
    rng = random.Random(5)
    order = sorted(pieces - {"<unk>", "</s>", "<s>"})
    # Some pieces never occurred in what a vocabulary was made from. Some of a model's unknown characters did.
    dropped = set(rng.sample([p for p in order if len(p) > 1], 12))
    order = [p for p in order if p not in dropped] + ["\u2603", ">>de<<", ">>fr<<"]
    rng.shuffle(order)
    order = ["</s>", "<unk>"] + order + ["<pad>"]
    vocab = {p: i for i, p in enumerate(order)}
    (folder / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False, indent=1), encoding="utf-8")
    config = {"source_lang": "eng", "target_lang": "deu", "model_max_length": 512, "separate_vocabs": False,
              "tokenizer_class": "MarianTokenizer"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")

    tokenizer = MarianTokenizer.from_pretrained(folder)
    expected = {"texts": [], "ids": []}
    for text in TEXTS:
        ids = tokenizer(text).input_ids
        target = tokenizer(text_target=text).input_ids
        row = {"text": text, "source": ids, "target": target, "bare": tokenizer(text, add_special_tokens=False).input_ids}
        expected["texts"].append(row)
    sequences = [row["target"] for row in expected["texts"]]
    sequences += [[rng.randrange(len(order)) for _ in range(rng.randrange(1, 12))] for _ in range(60)]
    for ids in sequences:
        keep = dict(use_source_tokenizer=False)
        expected["ids"].append({"ids": ids, "text": tokenizer.decode(ids, **keep),
                                "skipped": tokenizer.decode(ids, skip_special_tokens=True, **keep)})
    expected["special"] = {"eos": tokenizer.eos_token_id, "unk": tokenizer.unk_token_id, "pad": tokenizer.pad_token_id}
    rows = [json.dumps(row, ensure_ascii=True) for row in expected["texts"]]
    decoded = [json.dumps(row, ensure_ascii=True) for row in expected["ids"]]
    text = ('{"special": ' + json.dumps(expected["special"]) + ',\n"texts": [\n' + ",\n".join(rows)
            + '],\n"ids": [\n' + ",\n".join(decoded) + "]}\n")
    (folder / "expected.json").write_text(text, encoding="utf-8")


def with_model(path):
    """Pieces and texts of a model with a full table of replacements."""
    model = sentencepiece.SentencePieceProcessor(model_file=str(path))
    rows = [{"text": t, "pieces": model.encode(t, out_type=str), "ids": model.encode(t),
             "decoded": model.decode_pieces(model.encode(t, out_type=str))} for t in TEXTS]
    (OUT.parent / "sentencepiece.json").write_text("[\n" + ",\n".join(json.dumps(r) for r in rows) + "]\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--lines", type=Path, nargs=2)
    args = parser.parse_args()
    if args.lines:
        tokenizer = MarianTokenizer.from_pretrained(args.folder)
        for source, target in zip(*(p.read_text(encoding="utf-8").splitlines() for p in args.lines), strict=True):
            ids = tokenizer(text_target=target).input_ids
            print(json.dumps({"source": tokenizer(source).input_ids, "target": ids,
                              "text": tokenizer.decode(ids, skip_special_tokens=True)}))
        return
    make(OUT)
    if args.model:
        with_model(args.model)


if __name__ == "__main__":
    main()
