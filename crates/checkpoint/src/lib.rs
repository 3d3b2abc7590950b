//! Genus: reading and writing model folders and training state
