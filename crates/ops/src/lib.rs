//! Genus: fused, differentiable operations and their kernels
