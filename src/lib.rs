//! Genus: the Transformer and all its descendants.
pub use genus_checkpoint as checkpoint;
pub use genus_infer as infer;
pub use genus_models as models;
pub use genus_nn as nn;
pub use genus_ops as ops;
pub use genus_text as text;
pub use genus_train as train;
