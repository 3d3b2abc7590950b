//! Genus: objectives, the training loop, resuming and metrics
