//! Genus: one file per model of the family, and the registry
