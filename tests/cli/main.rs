//! The program as its users run it: real flows on small data, bad input, and what goes to which stream.

mod basics;
mod bench;
mod convert;
mod embed;
mod evaluate;
mod forward;
mod generate;
mod interrupted;
mod program;
mod quickstart;
mod tokenizer;
mod train;
mod translation;
