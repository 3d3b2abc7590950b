//! Genus: generation and scoring
