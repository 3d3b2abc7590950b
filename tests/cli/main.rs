//! The program as its users run it: real flows on small data, bad input, and what goes to which stream.

mod basics;
mod convert;
mod program;
mod tokenizer;
