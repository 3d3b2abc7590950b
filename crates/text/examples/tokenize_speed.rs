//! How fast a tokenizer is: `tokenize_speed TOKENIZER_FOLDER MEGABYTES FILE...`
//!
//! The files' text, cut at line ends into documents of about 4 kB and repeated up to the size, is encoded as one batch.
//! `tokenize_speed.py` beside this file does the same with Python's `tokenizers`.

use genus_text::Tokenizer;
use std::time::Instant;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [folder, megabytes, files @ ..] = args.as_slice() else {
        return Err("expected: TOKENIZER_FOLDER MEGABYTES FILE...".into());
    };
    let tokenizer = match folder.as_str() {
        "bytes" => Tokenizer::bytes(),
        folder => Tokenizer::open(folder)?,
    };
    let mut documents = vec![String::new()];
    for file in files {
        let bytes = std::fs::read(file)?;
        let text: String = bytes.utf8_chunks().map(|c| c.valid()).collect();
        for line in text.split_inclusive('\n') {
            match documents.last_mut() {
                Some(last) if last.len() < 4096 => last.push_str(line),
                _ => documents.push(line.to_owned()),
            }
        }
    }
    let (once, size) = (documents.len(), megabytes.parse::<usize>()? * 1_000_000);
    let mut bytes: usize = documents.iter().map(String::len).sum();
    while bytes < size {
        let next = documents[documents.len() % once].clone();
        bytes += next.len();
        documents.push(next);
    }
    tokenizer.encode_batch(&documents[..once.min(64)], false)?;
    for _ in 0..3 {
        let start = Instant::now();
        let ids = tokenizer.encode_batch(&documents, false)?;
        let seconds = start.elapsed().as_secs_f64();
        let tokens: usize = ids.iter().map(Vec::len).sum();
        println!(
            "{:.1} MB, {tokens} tokens, {seconds:.2} s, {:.1} MB/s",
            bytes as f64 / 1e6,
            bytes as f64 / 1e6 / seconds
        );
    }
    Ok(())
}
