//! Genus: tokenizers, corpora and datasets
